"""State of a model that its `state_dict` leaves out: numbers that forward keeps as attributes.

Detectron2's RetinaNet and FCOS divide their losses by a moving average of the number of positive
anchors, which is a plain Python number, another one on each process. It is found as what it is, a
number that training has changed, so that any such model can be resumed exactly.
"""

from torch import nn

Numbers = dict[str, dict[str, float]]
"""Name of a submodule ("" for the model itself) -> name of an attribute -> its value."""


def read_numbers(model: nn.Module) -> Numbers:
    """The integers and floats among the plain attributes of all submodules."""
    found = {}
    for name, module in model.named_modules():
        # Exact types: `training` and other switches are bools.
        numbers = {k: v for k, v in vars(module).items() if type(v) in (int, float)}
        if numbers:
            found[name] = numbers
    return found


def write_numbers(model: nn.Module, numbers: Numbers) -> None:
    """Set attributes of submodules to what :func:`read_numbers` found."""
    for name, values in numbers.items():
        vars(model.get_submodule(name)).update(values)


def restore_numbers(model: nn.Module, numbers: Numbers) -> None:
    """Make :func:`read_numbers` return `numbers` again; attributes that are new since then go."""
    for name, values in read_numbers(model).items():
        module = model.get_submodule(name)
        for new in values.keys() - numbers.get(name, {}).keys():
            delattr(module, new)
    write_numbers(model, numbers)


class HiddenState:
    """The numbers of a model that are not those it was built with.

    What never changes is left out, as a config may set it otherwise when training is resumed.
    """

    def __init__(self, model: nn.Module):
        """
        Args:
            model: as it was built, before its first forward.
        """
        self._model = model
        self._built = read_numbers(model)

    def state_dict(self) -> Numbers:
        changed = {}
        for name, numbers in read_numbers(self._model).items():
            built = self._built.get(name, {})
            # NaN, which is not equal to itself, counts as changed.
            new = {k: v for k, v in numbers.items() if k not in built or v != built[k]}
            if new:
                changed[name] = new
        return changed

    def load_state_dict(self, state: Numbers) -> None:
        """Go back to the model as it was built, but for the numbers in `state`."""
        restore_numbers(self._model, self._built)
        write_numbers(self._model, state)
