"""Any convolutional network of timm as a Detectron2 backbone with a feature pyramid.

Most weights for timm models expect RGB images with ImageNet's mean and standard deviation:
set INPUT.FORMAT, MODEL.PIXEL_MEAN and MODEL.PIXEL_STD accordingly (in 0..255).
"""

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool
from torch import nn

from soft_teacher.modeling.backbones.frozen_norm import freeze_batch_norms

# Detectron2's names of feature levels, by stride.
LEVEL_NAMES = {4: "res2", 8: "res3", 16: "res4", 32: "res5"}


class TimmBackbone(Backbone):
    """A timm feature network that answers with a dictionary of levels, "res2" to "res5".

    Args:
        net: made by `timm.create_model(..., features_only=True)`; it maps images N,C,H,W to a
            list of feature maps N,C',H',W', one for each entry of its `feature_info`.

    Raises:
        ValueError: the levels' strides are not 4, 8, 16 or 32, each at most once.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        strides = net.feature_info.reduction()
        if not set(strides) <= set(LEVEL_NAMES) or len(set(strides)) != len(strides):
            raise ValueError(
                f"The levels of MODEL.TIMM.NAME at MODEL.TIMM.OUT_INDICES have strides {strides}; "
                f"choose levels among {list(LEVEL_NAMES)}, each once."
            )
        names = [LEVEL_NAMES[stride] for stride in strides]
        self.net = net
        # Read by Backbone.output_shape().
        self._out_features = names
        self._out_feature_strides = dict(zip(names, strides, strict=True))
        self._out_feature_channels = dict(zip(names, net.feature_info.channels(), strict=True))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map normalized images N,C,H,W to feature maps by level name."""
        return dict(zip(self._out_features, self.net(x), strict=True))


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build Detectron2's FPN on the timm model described by MODEL.TIMM.

    All levels of MODEL.TIMM.OUT_INDICES enter the pyramid, named "res2" to "res5" by stride.

    Raises:
        ImportError: timm is not installed.
        ValueError: a key of MODEL.TIMM or MODEL.FPN.IN_FEATURES does not fit the model.
    """
    bottom_up = build_timm_backbone(cfg, input_shape)
    levels = list(bottom_up.output_shape())
    wanted = list(cfg.MODEL.FPN.IN_FEATURES)
    if wanted and wanted != levels:
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES is {wanted}, but MODEL.TIMM.OUT_INDICES gives {levels}; "
            "make them agree, or leave MODEL.FPN.IN_FEATURES empty."
        )
    return FPN(
        bottom_up=bottom_up,
        in_features=levels,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the network of MODEL.TIMM, with weights loaded and frozen parts frozen."""
    timm_cfg = cfg.MODEL.TIMM
    net = _create_feature_net(timm_cfg.NAME, timm_cfg.OUT_INDICES, input_shape.channels)
    if timm_cfg.WEIGHTS:
        from soft_teacher.modeling.backbones.timm_weights import load_timm_weights

        load_timm_weights(net, timm_cfg.NAME, timm_cfg.WEIGHTS, input_shape.channels)
    if timm_cfg.FREEZE_NORM:
        freeze_batch_norms(net)
    freeze_levels(net, timm_cfg.FREEZE_AT, input_shape.channels)
    return TimmBackbone(net)


def _create_feature_net(name: str, out_indices: tuple[int, ...], in_chans: int) -> nn.Module:
    """Create timm's `features_only` form of a model with random weights."""
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            "build_timm_fpn_backbone needs timm: pip install -e '.[timm]' (or `make setup`)."
        ) from error
    # The check also keeps timm from asking a hub for names such as "hf-hub:owner/model".
    if not timm.is_model(name):
        raise ValueError(f"MODEL.TIMM.NAME is {name!r}, which timm does not know.")
    try:
        net = timm.create_model(
            name,
            pretrained=False,
            features_only=True,
            out_indices=tuple(out_indices),
            in_chans=in_chans,
        )
    # What timm raises for a model without feature levels, or without one of these.
    except (RuntimeError, AssertionError, IndexError) as error:
        raise ValueError(
            f"timm's MODEL.TIMM.NAME {name!r} has no feature levels {tuple(out_indices)} "
            f"(MODEL.TIMM.OUT_INDICES): {error}"
        ) from error
    if getattr(net, "output_fmt", "NCHW") != "NCHW":
        raise ValueError(
            f"MODEL.TIMM.NAME {name!r} gives feature maps with channels last, which is not "
            "supported; choose another model."
        )
    return net


def freeze_levels(net: nn.Module, num_levels: int, in_chans: int) -> None:
    """Stop the training of all that the first `num_levels` feature levels depend on, in place.

    That is the stem and every block up to the last of these levels: 1 freezes what gives the
    first level of OUT_INDICES ("res2" as a rule; MODEL.BACKBONE.FREEZE_AT 2 of Detectron2's
    ResNet), 0 freezes nothing. Batch norms among it are frozen whole.

    Since timm lays its networks out in several ways, the parameters are found by asking autograd
    which of them reach the level.

    Raises:
        ValueError: the network has fewer levels.
    """
    count = len(net.feature_info.reduction())
    if not 0 <= num_levels <= count:
        raise ValueError(f"MODEL.TIMM.FREEZE_AT is {num_levels}; choose 0 to {count}, the levels.")
    if num_levels == 0:
        return
    parameters = list(net.parameters())
    net.eval()  # the probe must not move running statistics
    # Two pixels at stride 32.
    levels = net(torch.zeros(1, in_chans, 64, 64))[:num_levels]
    grads = torch.autograd.grad(sum(x.sum() for x in levels), parameters, allow_unused=True)
    net.train()
    for parameter, grad in zip(parameters, grads, strict=True):
        if grad is not None:
            parameter.requires_grad_(False)
    freeze_batch_norms(net, lambda norm: norm.affine and not norm.weight.requires_grad)
