"""The models of Soft Teacher; importing this package registers them with Detectron2."""

from soft_teacher.modeling import backbones
from soft_teacher.modeling.guidance import Guidance
from soft_teacher.modeling.meta_arch import SoftTeacherRCNN
from soft_teacher.modeling.roi_heads import SoftTeacherROIHeads, SoftTeacherROIMixin

__all__ = [
    "Guidance",
    "SoftTeacherRCNN",
    "SoftTeacherROIHeads",
    "SoftTeacherROIMixin",
    "backbones",
]
