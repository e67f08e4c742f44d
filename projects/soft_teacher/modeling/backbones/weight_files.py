"""Files of backbone weights: where they are, what they hold, and whether that fits a network."""

import importlib.util
import pickle
from pathlib import Path

import torch

from soft_teacher.safe_loading import load_arrays

PACKAGE_PREFIX = "package://"
State = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]


def locate_weights(location: str, key: str) -> Path:
    """Find the file: a path, or "package://PACKAGE/FILE" for one inside an installed package.

    The package is not imported, so none of its code runs.

    Args:
        location: value of the config key.
        key: name of the config key, for messages.

    Raises:
        ValueError: there is no such package or file.
    """
    if not location.startswith(PACKAGE_PREFIX):
        path = Path(location)
    else:
        package, _, inside = location[len(PACKAGE_PREFIX) :].partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                f"{key} is {location!r}, but the package {package!r} is not "
                f"installed: pip install {package.replace('_', '-')}"
            )
        path = Path(spec.submodule_search_locations[0]) / inside
    if not path.is_file():
        raise ValueError(f"{key} is {location!r}, but there is no file {path}.")
    return path


def read_tensors(path: Path, key: str) -> State:
    """Read a file of tensors, without running any code in it.

    It is PyTorch's, safetensors, or a pickle of arrays (.pkl) as Detectron2's model zoo has them.
    Of a checkpoint with more in it, that is the content of "model" or "state_dict".

    Args:
        path: the file.
        key: name of the config key, for messages.

    Raises:
        ImportError: timm, whose reader this is for all but pickles, is not installed.
        ValueError: the file holds anything else.
    """
    if path.suffix == ".pkl":
        try:
            return load_arrays(str(path))
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
    require_timm(key)
    from timm.models import load_state_dict

    try:
        state = load_state_dict(str(path), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{key}: {path} is not a file of tensors: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"{key}: {path} is not a dictionary of tensors.")
    return state


def require_timm(wanted_by: str) -> None:
    """Raise an ImportError with the remedy if timm, which is optional, is not installed."""
    if importlib.util.find_spec("timm") is None:
        raise ImportError(f"{wanted_by} needs timm: pip install -e '.[timm]' (or `make setup`).")


def shapes_of(state: State) -> Shapes:
    """The shape of each tensor, by name, in the same order."""
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def differences_by_name(found: Shapes, wanted: Shapes, owner: str) -> list[str]:
    """What differs between a file and a network, one readable entry for each tensor.

    Args:
        found: shapes in the file.
        wanted: shapes in the network.
        owner: how messages call the network.
    """
    return [
        f"{key} is {found.get(key, 'absent')} in the file, {wanted.get(key, 'absent')} in {owner}"
        for key in dict.fromkeys([*wanted, *found])
        if found.get(key) != wanted.get(key)
    ]
