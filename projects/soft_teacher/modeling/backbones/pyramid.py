"""Detectron2's feature pyramid on the backbones of this package."""

import math

from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool

# Detectron2's names of feature levels, by stride.
LEVEL_NAMES = {4: "res2", 8: "res3", 16: "res4", 32: "res5"}


class BackboneFPN(FPN):
    """Detectron2's FPN, which has images padded for the network below it too.

    Detectron2's own asks for multiples of the largest stride, whatever that network needs.
    """

    @property
    def size_divisibility(self) -> int:
        """Height and width of a batch of images are multiples of it, in pixels."""
        return math.lcm(super().size_divisibility, self.bottom_up.size_divisibility or 1)


def build_rcnn_fpn(cfg: CfgNode, bottom_up: Backbone, levels_key: str) -> FPN:
    """A pyramid on all levels of a network with P6 pooled from P5, as Faster R-CNN has it.

    Args:
        cfg: the config; MODEL.FPN is read.
        bottom_up: levels named as in `LEVEL_NAMES`, in order.
        levels_key: the config key that chooses its levels, for messages.

    Raises:
        ValueError: MODEL.FPN.IN_FEATURES says otherwise.
    """
    levels = list(bottom_up.output_shape())
    wanted = list(cfg.MODEL.FPN.IN_FEATURES)
    if wanted and wanted != levels:
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES is {wanted}, but {levels_key} gives {levels}; "
            "make them agree, or leave MODEL.FPN.IN_FEATURES empty."
        )
    return BackboneFPN(
        bottom_up=bottom_up,
        in_features=levels,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
