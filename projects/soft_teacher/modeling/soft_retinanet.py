"""A RetinaNet that can be either of Soft Teacher's two models."""

from collections.abc import Sequence

from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.modeling.box_regression import _dense_box_regression_loss
from detectron2.structures import Boxes
from torch import Tensor

from soft_teacher.modeling.dense_detector import SoftTeacherDenseMixin
from soft_teacher.modeling.dense_settings import DenseSettings


@META_ARCH_REGISTRY.register()
class SoftTeacherRetinaNet(SoftTeacherDenseMixin, RetinaNet):
    """Detectron2's RetinaNet under Soft Teacher; parameters are those of the parent."""

    _cls_loss_name = "loss_cls"

    @configurable
    def __init__(self, *, soft_teacher: DenseSettings, **kwargs):
        """
        Args:
            soft_teacher: how it teaches and learns.
            kwargs: those of RetinaNet.
        """
        super().__init__(**kwargs)
        self.soft_teacher = soft_teacher

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {**super().from_config(cfg), "soft_teacher": DenseSettings.from_config(cfg)}

    @property
    def _prediction_dims(self) -> list[int]:
        return [self.num_classes, 4]

    def _detection_scores(
        self, probabilities: list[Tensor], others: Sequence[list[Tensor]]
    ) -> list[Tensor]:
        return probabilities

    def _localization_losses(
        self,
        anchors: list[Boxes],
        deltas: list[Tensor],
        others: Sequence[list[Tensor]],
        boxes: list[Tensor],
        positive: Tensor,
    ) -> dict[str, Tensor]:
        loss = _dense_box_regression_loss(
            anchors,
            self.box2box_transform,
            deltas,
            boxes,
            positive,
            box_reg_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        return {"loss_box_reg": loss}
