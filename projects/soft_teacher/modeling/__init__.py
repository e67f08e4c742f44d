"""The models of Soft Teacher; importing this package registers them with Detectron2."""

from soft_teacher.modeling import backbones
from soft_teacher.modeling.guidance import Guidance
from soft_teacher.modeling.meta_arch import SoftTeacherRCNN
from soft_teacher.modeling.roi_heads import SoftTeacherROIHeads, SoftTeacherROIMixin
from soft_teacher.modeling.roi_heads_cascade import (
    SoftTeacherCascadeMixin,
    SoftTeacherCascadeROIHeads,
)
from soft_teacher.modeling.roi_heads_htc import SoftTeacherHTCROIHeads
from soft_teacher.modeling.soft_fcos import SoftTeacherFCOS
from soft_teacher.modeling.soft_retinanet import SoftTeacherRetinaNet

__all__ = [
    "Guidance",
    "SoftTeacherCascadeMixin",
    "SoftTeacherCascadeROIHeads",
    "SoftTeacherFCOS",
    "SoftTeacherHTCROIHeads",
    "SoftTeacherRCNN",
    "SoftTeacherROIHeads",
    "SoftTeacherROIMixin",
    "SoftTeacherRetinaNet",
    "backbones",
]
