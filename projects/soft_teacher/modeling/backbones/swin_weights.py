"""Load ImageNet or detection weights into Detectron2's Swin Transformer, all tensors or none."""

import logging
import math
import re
from pathlib import Path

import torch
from detectron2.modeling.backbone.swin import SwinTransformer
from torch.nn import functional as F

from soft_teacher.modeling.backbones.weight_files import (
    State,
    differences_by_name,
    locate_weights,
    read_tensors,
    shapes_of,
)

logger = logging.getLogger(__name__)

KEY = "MODEL.SWIN.WEIGHTS"
# Of the backbone in a detector with FPN.
DETECTOR_PREFIX = "backbone.bottom_up."
TABLE = "relative_position_bias_table"
# Of the classifier, and what follows from the sizes alone.
_NOT_OF_BACKBONE = re.compile(r"(head|norm)\..*|.*\.(attn_mask|relative_position_index)")
_DOWNSAMPLE = re.compile(r"layers\.(\d+)\.(downsample\..*)")
_OUTPUT_NORM = re.compile(r"norm\d\..*")
_GLOBAL_ATTENTION = "global_attention."


def load_swin_weights(net: SwinTransformer, location: str) -> None:
    """Load a file of weights into `net`, whatever the side of its attention windows.

    The file is one of Microsoft's ImageNet checkpoints, one of timm's for the same networks, or
    of a Detectron2 detector with this backbone, of which the backbone is taken. Names are
    converted by rule; each tensor of the network must be there, with the right shape, and none
    that the network does not know. The norms of the levels and the global attention behind them
    are in detectors only; with a classifier's network they start afresh.

    Args:
        net: changed in place.
        location: MODEL.SWIN.WEIGHTS, see `locate_weights`.

    Raises:
        ValueError: there is no such file or its tensors do not fit.
    """
    path = locate_weights(location, KEY)
    state = convert_names(read_tensors(path, KEY), num_stages=net.num_layers)
    wanted = {
        key: tensor
        for key, tensor in net.state_dict().items()
        if not _NOT_OF_BACKBONE.fullmatch(key)
    }
    state, wanted = _settle_output_norms(state, wanted, path)
    wanted = _settle_global_attention(state, wanted, path)
    state = {key: _fit(key, tensor, wanted.get(key)) for key, tensor in state.items()}
    differences = differences_by_name(shapes_of(state), shapes_of(wanted), "MODEL.SWIN")
    if differences:
        raise ValueError(
            f"{KEY}: {path} does not fit the network that the other keys of MODEL.SWIN describe, "
            f"{len(differences)} tensors differ: " + "; ".join(differences[:3])
        )
    # What is left out: indices that follow from the window, and what starts afresh.
    net.load_state_dict(state, strict=False)
    logger.info("%s: %d tensors of the backbone are loaded", path, len(state))


def convert_names(state: State, num_stages: int) -> State:
    """The backbone's tensors of any of the known files, by Detectron2's names.

    Args:
        state: the file's tensors.
        num_stages: stages of the network; a layer that merges patches in the last one tells that
            the file is timm's.
    """
    if any(key.startswith(DETECTOR_PREFIX) for key in state):
        state = {
            key.removeprefix(DETECTOR_PREFIX): tensor
            for key, tensor in state.items()
            if key.startswith(DETECTOR_PREFIX)
        }
    state = {key: tensor for key, tensor in state.items() if not _NOT_OF_BACKBONE.fullmatch(key)}
    if any(key.startswith(f"layers.{num_stages - 1}.downsample.") for key in state):
        # timm merges patches at the start of a stage, the others at the end of the one before.
        state = {
            _DOWNSAMPLE.sub(lambda m: f"layers.{int(m[1]) - 1}.{m[2]}", key): tensor
            for key, tensor in state.items()
        }
    return state


def resize_bias_table(table: torch.Tensor, length: int) -> torch.Tensor:
    """Relative position biases for windows of another size, by bicubic interpolation.

    As Swin's authors do it: each head's biases are an image over the offsets between two tokens.

    Args:
        table: (2w-1)^2,heads for windows of side w; along a row the offset in x changes.
        length: (2w'-1)^2.

    Returns:
        length,heads.
    """
    old, new = math.isqrt(len(table)), math.isqrt(length)
    assert old * old == len(table) and new * new == length, (len(table), length)
    images = table.float().T.reshape(1, -1, old, old)
    resized = F.interpolate(images, size=(new, new), mode="bicubic", align_corners=False)
    return resized.reshape(-1, length).T.to(table.dtype).contiguous()


def _fit(key: str, tensor: torch.Tensor, wanted: torch.Tensor | None) -> torch.Tensor:
    """A tensor in the shape that Detectron2 has it in, where the file's says the same."""
    if wanted is None or tensor.shape == wanted.shape:
        return tensor
    if key.endswith(TABLE) and tensor.ndim == 2 and tensor.shape[1] == wanted.shape[1]:
        is_square = math.isqrt(len(tensor)) ** 2 == len(tensor)
        return resize_bias_table(tensor, len(wanted)) if is_square else tensor
    if key == "absolute_pos_embed" and tensor.ndim == 3:
        # 1,H*W,C with the official classifier, 1,C,H,W in detectors.
        as_image = tensor.transpose(1, 2)
        return as_image.reshape(wanted.shape) if as_image.numel() == wanted.numel() else tensor
    return tensor


def _settle_output_norms(state: State, wanted: State, path: Path) -> tuple[State, State]:
    """Let levels' norms start afresh if the file has none, and drop those of unused levels."""
    norms = {key for key in wanted if _OUTPUT_NORM.fullmatch(key)}
    in_file = {key for key in state if _OUTPUT_NORM.fullmatch(key)}
    if not in_file:
        logger.info("%s has no norms of feature levels: they start afresh", path)
        return state, {key: tensor for key, tensor in wanted.items() if key not in norms}
    return {k: v for k, v in state.items() if k not in in_file - norms}, wanted


def _settle_global_attention(state: State, wanted: State, path: Path) -> State:
    """Let the layer behind the last stage start afresh if the network has it and the file not."""
    own = {key for key in wanted if key.startswith(_GLOBAL_ATTENTION)}
    if own and not any(key.startswith(_GLOBAL_ATTENTION) for key in state):
        logger.info("%s has no global attention: it starts afresh", path)
        return {key: tensor for key, tensor in wanted.items() if key not in own}
    return wanted
