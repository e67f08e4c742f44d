"""Backbones beyond Detectron2's own; importing this package registers them."""

from soft_teacher.modeling.backbones.p6p7_fpn import (
    build_resnet_p6p7_fpn_backbone,
    build_timm_p6p7_fpn_backbone,
)
from soft_teacher.modeling.backbones.swin import SwinBackbone, build_swin_fpn_backbone
from soft_teacher.modeling.backbones.timm_fpn import TimmBackbone, build_timm_fpn_backbone

__all__ = [
    "SwinBackbone",
    "TimmBackbone",
    "build_resnet_p6p7_fpn_backbone",
    "build_swin_fpn_backbone",
    "build_timm_fpn_backbone",
    "build_timm_p6p7_fpn_backbone",
]
