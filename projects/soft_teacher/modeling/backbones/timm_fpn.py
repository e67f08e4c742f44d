"""Any network of timm with feature levels as a Detectron2 backbone with a feature pyramid.

Most weights for timm models expect RGB images with ImageNet's mean and standard deviation:
set INPUT.FORMAT, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD accordingly (in 0..255).
"""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN
from torch import nn

from soft_teacher.modeling.backbones.frozen_norm import freeze_batch_norms
from soft_teacher.modeling.backbones.pyramid import LEVEL_NAMES, build_rcnn_fpn
from soft_teacher.modeling.backbones.timm_freezing import freeze_levels
from soft_teacher.modeling.backbones.timm_net import (
    create_feature_net,
    has_channels_last,
    is_normed_by_layers,
    undecayed_parameters,
)
from soft_teacher.modeling.backbones.timm_sizes import require_all_sizes, window_divisibility

OUT_NORMS = ("auto", "LN", "none")


class TimmBackbone(Backbone):
    """A timm feature network that answers with a dictionary of levels, "res2" to "res5".

    Feature maps with the channels last are permuted to N,C,H,W.
    """

    def __init__(self, net: nn.Module, norm_outputs: bool = False) -> None:
        """
        Args:
            net: made by `timm.create_model(..., features_only=True)`; it maps images N,C,H,W to a
                list of feature maps, one for each entry of its `feature_info`.
            norm_outputs: whether each level gets a layer norm over its channels.

        Raises:
            ValueError: the levels' strides are not 4, 8, 16 or 32, each at most once.
        """
        super().__init__()
        strides = net.feature_info.reduction()
        if not set(strides) <= set(LEVEL_NAMES) or len(set(strides)) != len(strides):
            raise ValueError(
                f"The levels of MODEL.TIMM.NAME at MODEL.TIMM.OUT_INDICES have strides {strides}; "
                f"choose levels among {list(LEVEL_NAMES)}, each once."
            )
        names = [LEVEL_NAMES[stride] for stride in strides]
        channels = dict(zip(names, net.feature_info.channels(), strict=True))
        self.net = net
        self.norms = nn.ModuleDict(
            {name: nn.LayerNorm(channels[name]) for name in names if norm_outputs}
        )
        self._channels_last = has_channels_last(net)
        self._size_divisibility = window_divisibility(net)
        # Read by Backbone.output_shape().
        self._out_features = names
        self._out_feature_strides = dict(zip(names, strides, strict=True))
        self._out_feature_channels = channels

    @property
    def size_divisibility(self) -> int:
        """What height and width of images should be multiples of, in pixels."""
        return self._size_divisibility

    def parameters_without_decay(self) -> list[nn.Parameter]:
        """What SOLVER.OPTIMIZER "ADAMW" lets not decay, beside norms."""
        return undecayed_parameters(self.net)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map normalized images N,C,H,W to feature maps by level name."""
        levels = dict(zip(self._out_features, self.net(x), strict=True))
        return {name: self._finish(name, level) for name, level in levels.items()}

    def _finish(self, name: str, level: torch.Tensor) -> torch.Tensor:
        """Norm a level and lay it out as N,C,H,W."""
        if not self.norms and not self._channels_last:
            return level
        if not self._channels_last:
            level = level.permute(0, 2, 3, 1)
        if self.norms:
            level = self.norms[name](level)
        return level.permute(0, 3, 1, 2).contiguous()


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build Detectron2's FPN on the timm model described by MODEL.TIMM.

    All levels of MODEL.TIMM.OUT_INDICES enter the pyramid, named "res2" to "res5" by stride.

    Raises:
        ImportError: timm is not installed.
        ValueError: a key of MODEL.TIMM or MODEL.FPN.IN_FEATURES does not fit the model.
    """
    return build_rcnn_fpn(cfg, build_timm_backbone(cfg, input_shape), "MODEL.TIMM.OUT_INDICES")


def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the network of MODEL.TIMM, with weights loaded and frozen parts frozen.

    Raises:
        ImportError: timm is not installed.
        ValueError: a key of MODEL.TIMM does not fit the model, or the model does not take images
            of every size.
    """
    timm_cfg, in_chans = cfg.MODEL.TIMM, input_shape.channels
    if timm_cfg.OUT_NORM not in OUT_NORMS:
        raise ValueError(
            f"MODEL.TIMM.OUT_NORM is {timm_cfg.OUT_NORM!r}; choose one of {OUT_NORMS}."
        )
    net = create_feature_net(timm_cfg.NAME, timm_cfg.OUT_INDICES, in_chans, timm_cfg.DROP_PATH_RATE)
    norm_outputs = timm_cfg.OUT_NORM == "LN" or (
        timm_cfg.OUT_NORM == "auto" and is_normed_by_layers(net)
    )
    backbone = TimmBackbone(net, norm_outputs)
    require_all_sizes(net, timm_cfg.NAME, in_chans)
    if timm_cfg.WEIGHTS:
        from soft_teacher.modeling.backbones.timm_weights import load_timm_weights

        load_timm_weights(net, timm_cfg.NAME, timm_cfg.WEIGHTS, in_chans)
    if timm_cfg.FREEZE_NORM:
        freeze_batch_norms(net)
    freeze_levels(net, timm_cfg.FREEZE_AT, in_chans)
    return backbone
