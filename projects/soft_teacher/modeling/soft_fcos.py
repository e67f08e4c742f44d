"""An FCOS that can be either of Soft Teacher's two models, and be built from YAML."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.box_regression import _dense_box_regression_loss
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.structures import Boxes
from torch import Tensor, nn

from soft_teacher.modeling.dense_detector import SoftTeacherDenseMixin
from soft_teacher.modeling.dense_settings import DenseSettings


@META_ARCH_REGISTRY.register()
class SoftTeacherFCOS(SoftTeacherDenseMixin, FCOS):
    """Detectron2's FCOS under Soft Teacher; parameters are those of the parent.

    Detectron2 itself builds an FCOS from Python only. This one reads MODEL.FCOS.
    """

    _cls_loss_name = "loss_fcos_cls"

    @configurable
    def __init__(self, *, soft_teacher: DenseSettings, **kwargs):
        """
        Args:
            soft_teacher: how it teaches and learns.
            kwargs: those of FCOS.
        """
        super().__init__(**kwargs)
        self.soft_teacher = soft_teacher

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        fcos = cfg.MODEL.FCOS
        backbone = build_backbone(cfg)
        shapes = [backbone.output_shape()[name] for name in fcos.IN_FEATURES]
        head = FCOSHead(
            input_shape=shapes,
            num_classes=fcos.NUM_CLASSES,
            conv_dims=[shapes[0].channels] * fcos.NUM_CONVS,
            norm=fcos.NORM,
            prior_prob=fcos.PRIOR_PROB,
        )
        nn.init.constant_(head.bbox_pred.bias, fcos.BOX_BIAS)
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": fcos.IN_FEATURES,
            "num_classes": fcos.NUM_CLASSES,
            "center_sampling_radius": fcos.CENTER_SAMPLING_RADIUS,
            "focal_loss_alpha": fcos.FOCAL_LOSS_ALPHA,
            "focal_loss_gamma": fcos.FOCAL_LOSS_GAMMA,
            "test_score_thresh": fcos.SCORE_THRESH_TEST,
            "test_topk_candidates": fcos.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": fcos.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "soft_teacher": DenseSettings.from_config(cfg),
        }

    @property
    def _prediction_dims(self) -> list[int]:
        return [self.num_classes, 4, 1]

    def _detection_scores(
        self, probabilities: list[Tensor], others: Sequence[list[Tensor]]
    ) -> list[Tensor]:
        """Detectron2's: the geometric mean of class probability and centerness."""
        (centerness,) = others
        return [
            torch.sqrt(p * c.float().sigmoid())
            for p, c in zip(probabilities, centerness, strict=True)
        ]

    def _localization_losses(
        self,
        anchors: list[Boxes],
        deltas: list[Tensor],
        others: Sequence[list[Tensor]],
        boxes: list[Tensor],
        positive: Tensor,
    ) -> dict[str, Tensor]:
        """Boxes and centerness: the latter is a matter of the exact box, so G_reg teaches it."""
        (centerness,) = others
        loss_loc = _dense_box_regression_loss(
            anchors, self.box2box_transform, deltas, boxes, positive, box_reg_loss_type="giou"
        )
        targets = self.compute_ctrness_targets(anchors, boxes)
        loss_ctr = F.binary_cross_entropy_with_logits(
            torch.cat(centerness, dim=1).squeeze(dim=2)[positive],
            targets[positive],
            reduction="sum",
        )
        return {"loss_fcos_loc": loss_loc, "loss_fcos_ctr": loss_ctr}
