"""Detectors that look at an image several times, at several scales and in the mirror.

Detectron2's `GeneralizedRCNNWithTTA` finds boxes in each view, merges all of them by NMS, and
averages the masks that the detector draws into the merged boxes in each view. Cascades and HTC go
through it as they are: their heads draw, and average, masks in given boxes. Added here are
soft-NMS for the merger, averages of boxes, and batches of views of one size.
"""

from dataclasses import replace

import torch
from detectron2.config import CfgNode
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from soft_teacher.modeling.box_voting import average_boxes
from soft_teacher.modeling.soft_nms import SoftNms

SUFFIX = "_TTA"
"""Of the names of results, as in Detectron2's train_net.py."""


def check_tta(cfg: CfgNode, model: nn.Module) -> None:
    """Raise a ValueError if a model cannot look at an image several times."""
    if not isinstance(model, GeneralizedRCNN):
        raise ValueError(
            f"Scales and flip (TEST.AUG.ENABLED) work with R-CNN models, not with "
            f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r}; leave them out."
        )


class RCNNWithTTA(GeneralizedRCNNWithTTA):
    """A student or a teacher with test-time augmentation.

    With soft-NMS the detections of each view are chosen by it, but come to the merger with the
    scores that they had, and are lowered there, once. Otherwise two neighbors would be penalized
    once in their view and again among those of all views.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        views: DatasetMapperTTA | None = None,
        averages_boxes: bool = False,
    ):
        """
        Args:
            cfg: its TEST.AUG says what the views are, unless `views` does.
            model: the detector.
            views: makes views of an image that nothing has resized before.
            averages_boxes: whether each box that is left becomes the mean of those of all views,
                see `average_boxes`.

        Raises:
            ValueError: the model is no R-CNN.
        """
        check_tta(cfg, model)
        views = views or DatasetMapperTTA(cfg)
        # Views of one size, next to each other, need no padding.
        super().__init__(cfg, model, views, batch_size=2 if views.flip else 1)
        self._averages_boxes = averages_boxes

    @property
    def _soft_nms(self) -> SoftNms | None:
        # Detectron2's own GeneralizedRCNN has none.
        return getattr(self.model, "soft_nms", None)

    def _get_augmented_boxes(self, augmented_inputs, tfms):
        soft_nms = self._soft_nms
        if soft_nms is None:
            return super()._get_augmented_boxes(augmented_inputs, tfms)
        self.model.soft_nms = replace(soft_nms, lowers=False)
        try:
            return super()._get_augmented_boxes(augmented_inputs, tfms)
        finally:
            self.model.soft_nms = soft_nms

    def _merge_detections(
        self,
        all_boxes: Tensor,
        all_scores: list[Tensor],
        all_classes: list[Tensor],
        shape_hw: tuple[int, int],
    ) -> Instances:
        """Detections of all views, in the frame of the original image, to those of the image."""
        if len(all_boxes) == 0:
            return super()._merge_detections(all_boxes, all_scores, all_classes, shape_hw)
        scores, classes = torch.stack(all_scores), torch.stack(all_classes)
        if self._soft_nms is None:
            merged = super()._merge_detections(all_boxes, all_scores, all_classes, shape_hw)
        else:
            boxes = Boxes(all_boxes)
            boxes.clip(shape_hw)
            found = Instances(shape_hw, pred_boxes=boxes, scores=scores, pred_classes=classes)
            merged = self._soft_nms(found)
        if self._averages_boxes:
            return average_boxes(merged, all_boxes, scores, classes)
        return merged
