"""Feature pyramids for one-stage detectors: P3 to P7.

Detectron2's own for RetinaNet, `build_retinanet_resnet_fpn_backbone`, takes P6 from C5, as the
RetinaNet paper does. These take it from P5, as Detectron2's FCOS does. With timm that also helps
RetinaNet: the last level of an EfficientNet has ten times the usual scale, P5 is normed.
"""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelP6P7
from detectron2.modeling.backbone.resnet import build_resnet_backbone

from soft_teacher.modeling.backbones.pyramid import BackboneFPN
from soft_teacher.modeling.backbones.timm_fpn import build_timm_backbone

LEVELS = ["res3", "res4", "res5"]


@BACKBONE_REGISTRY.register()
def build_resnet_p6p7_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Detectron2's ResNet with P3 to P7; MODEL.RESNETS.OUT_FEATURES and MODEL.FPN.IN_FEATURES are
    to be res3, res4, res5.

    Raises:
        ValueError: they are not.
    """
    return build_p6p7_fpn(
        cfg, build_resnet_backbone(cfg, input_shape), "MODEL.RESNETS.OUT_FEATURES"
    )


@BACKBONE_REGISTRY.register()
def build_timm_p6p7_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """The network of MODEL.TIMM with P3 to P7; MODEL.TIMM.OUT_INDICES name its levels of stride 8,
    16 and 32.

    Raises:
        ImportError: timm is not installed.
        ValueError: a key of MODEL.TIMM does not fit the model.
    """
    return build_p6p7_fpn(cfg, build_timm_backbone(cfg, input_shape), "MODEL.TIMM.OUT_INDICES")


def build_p6p7_fpn(cfg: CfgNode, bottom_up: Backbone, key: str) -> FPN:
    """A pyramid on the levels of stride 8, 16 and 32 of a network, with P6 and P7 from P5.

    Args:
        cfg: the config; MODEL.FPN is read.
        bottom_up: a network with exactly these levels, named `LEVELS`.
        key: the config key that chooses its levels, for messages.

    Raises:
        ValueError: it has others.
    """
    levels = list(bottom_up.output_shape())
    if levels != LEVELS:
        raise ValueError(
            f"{key} gives the levels {levels}, but P3 to P7 are built on those of stride 8, 16 and "
            f"32, {LEVELS}: change it."
        )
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return BackboneFPN(
        bottom_up=bottom_up,
        in_features=levels,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7(channels, channels, in_feature="p5"),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
