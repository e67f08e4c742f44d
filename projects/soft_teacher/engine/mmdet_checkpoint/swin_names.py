"""Names and channel order of the Swin Transformer in mmdetection and in Swin's own detectors.

Shape shorthand: C channels of a stage; patch merging joins 2 x 2 tokens into 4C channels.
"""

import re
from collections.abc import Callable

from torch import Tensor

_OURS = "backbone.bottom_up"
_PARAM = r"(?P<param>weight|bias)"
_PREFIX = r"backbone\.stages\.(?P<stage>\d+)\.blocks\.(?P<block>\d+)\."
_MERGED = re.compile(r"backbone\.stages\.\d+\.downsample\.(norm|reduction)\.\w+")


def _block(match: re.Match) -> str:
    return f"{_OURS}.layers.{match['stage']}.blocks.{match['block']}"


SWIN_RULES: list[tuple[re.Pattern, Callable[[re.Match], str]]] = [
    # mmdetection since 2.16.
    (
        re.compile(rf"backbone\.patch_embed\.projection\.{_PARAM}"),
        lambda m: f"{_OURS}.patch_embed.proj.{m['param']}",
    ),
    (
        re.compile(rf"{_PREFIX}(?P<norm>norm[12])\.{_PARAM}"),
        lambda m: f"{_block(m)}.{m['norm']}.{m['param']}",
    ),
    (
        re.compile(
            rf"{_PREFIX}attn\.w_msa\.(?P<name>relative_position_(?:bias_table|index)"
            r"|(?:qkv|proj)\.(?:weight|bias))"
        ),
        lambda m: f"{_block(m)}.attn.{m['name']}",
    ),
    (
        re.compile(rf"{_PREFIX}ffn\.layers\.(?P<fc>0\.0|1)\.{_PARAM}"),
        lambda m: f"{_block(m)}.mlp.fc{1 if m['fc'] == '0.0' else 2}.{m['param']}",
    ),
    (
        re.compile(
            r"backbone\.stages\.(?P<stage>\d+)\."
            r"(?P<name>downsample\.(?:norm\.(?:weight|bias)|reduction\.weight))"
        ),
        lambda m: f"{_OURS}.layers.{m['stage']}.{m['name']}",
    ),
    # Both, and Swin's authors' detectors (github.com/SwinTransformer), whose names and channels
    # are Detectron2's.
    (
        re.compile(
            r"backbone\.(?P<name>norm[0-3]\.(?:weight|bias)|patch_embed\.norm\.(?:weight|bias)"
            r"|patch_embed\.proj\.(?:weight|bias)|layers\.\d+\.(?:blocks\.\d+|downsample)\..*)"
        ),
        lambda m: f"{_OURS}.{m['name']}",
    ),
]


def reorder_merged_patches(name: str, tensor: Tensor) -> Tensor:
    """The channels of mmdetection's patch merging in the official order, other tensors as they are.

    mmdetection unfolds: channel (c, kh, kw) of the 2 x 2 tokens stands at 4c + 2 kh + kw. The
    official network joins the maps of the tokens (kh, kw) = 00, 10, 01, 11, each of C channels.

    Args:
        name: mmdetection's.
        tensor: of the norm (4C,) or of the reduction (2C, 4C).
    """
    if not _MERGED.fullmatch(name):
        return tensor
    by_token = tensor.reshape(*tensor.shape[:-1], -1, 2, 2)
    return by_token.transpose(-1, -3).reshape(tensor.shape)
