"""Backbones beyond Detectron2's own; importing this package registers them."""

from soft_teacher.modeling.backbones.timm_fpn import TimmBackbone, build_timm_fpn_backbone

__all__ = ["TimmBackbone", "build_timm_fpn_backbone"]
