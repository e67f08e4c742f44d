"""Soft-NMS (Bodla et al., ICCV 2017): overlapping detections score less instead of being dropped.

Shape shorthand: R detections of one image, M that are kept at most.

Why it is written here: torchvision and Detectron2 have none; mmcv's (last released in 2024) has to
be compiled for the very version of torch and runs on the CPU; ensemble-boxes (2022) takes lists of
normalized boxes through numba. What is needed is a loop of a few tensor operations.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from detectron2.config import CfgNode
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn

METHODS = ("linear", "gaussian")


@dataclass(frozen=True)
class SoftNms:
    """How scores are lowered.

    Attributes:
        method: "linear" or "gaussian", see MODEL.ROI_HEADS.SOFT_NMS.METHOD.
        iou_threshold: from which on a linear penalty holds.
        sigma: width of the gaussian penalty.
        min_score: detections that score lower in the end are dropped.
        max_num: M, detections of an image that are kept; below 0 for all.
        lowers: False: what is kept keeps the score that it came with, for a merger of several
            views, which lowers it once.
    """

    method: str
    iou_threshold: float
    sigma: float
    min_score: float
    max_num: int
    lowers: bool = True

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "SoftNms | None":
        """What MODEL.ROI_HEADS.SOFT_NMS describes; None if it is off.

        Raises:
            ValueError: a key has a value without meaning.
        """
        heads, keys = cfg.MODEL.ROI_HEADS, cfg.MODEL.ROI_HEADS.SOFT_NMS
        if not keys.ENABLED:
            return None
        if keys.METHOD not in METHODS:
            raise ValueError(
                f"MODEL.ROI_HEADS.SOFT_NMS.METHOD is {keys.METHOD!r}; choose one of "
                f"{', '.join(map(repr, METHODS))}."
            )
        if keys.SIGMA <= 0:
            raise ValueError(f"MODEL.ROI_HEADS.SOFT_NMS.SIGMA is {keys.SIGMA}; it must be above 0.")
        return cls(
            keys.METHOD,
            heads.NMS_THRESH_TEST,
            keys.SIGMA,
            keys.MIN_SCORE,
            cfg.TEST.DETECTIONS_PER_IMAGE,
        )

    def __call__(self, detections: Instances) -> Instances:
        """The best M of R detections, by their lowered scores, best first.

        Args:
            detections: `pred_boxes`, `scores` and `pred_classes` of one image, R of each.
        """
        boxes, scores = detections.pred_boxes, detections.scores
        rows, lowered = self.choose(boxes, scores, detections.pred_classes)
        rows, lowered = rows[lowered >= self.min_score], lowered[lowered >= self.min_score]
        kept = detections[rows]
        if self.lowers:
            kept.scores = lowered
        return kept

    def choose(self, boxes: Boxes, scores: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Rows int64 (M,) and lowered scores (M,) of the best of R, scores (R,), classes (R,).

        The best one is taken and lowers those of its class; the best of the rest is next, and so
        on. As penalties only lower, what is taken comes in the order of its final score, and the M
        best of all classes are known after M turns. Nothing is read back from the device.
        """
        num = len(boxes) if self.max_num < 0 else min(self.max_num, len(boxes))
        left = scores.clone()
        taken = torch.zeros_like(scores, dtype=torch.bool)
        rows = classes.new_zeros(num)
        lowered = scores.new_zeros(num)
        for i in range(num):
            best = left.argmax(dim=0, keepdim=True)  # (1,): it indexes without being read
            rows[i], lowered[i] = best[0], left[best][0]
            taken[best] = True
            penalty = self._penalty(pairwise_iou(boxes[best], boxes)[0])
            left = torch.where(classes == classes[best], left * penalty, left)
            left = left.masked_fill(taken, -math.inf)
        return rows, lowered

    def _penalty(self, iou: Tensor) -> Tensor:
        """Factors (R,) on scores by the IoU (R,) with the detection that was taken."""
        if self.method == "gaussian":
            return torch.exp(-(iou**2) / self.sigma)
        return torch.where(iou >= self.iou_threshold, 1 - iou, torch.ones_like(iou))


class SoftNmsMixin:
    """Lets a Detectron2 RoI head use soft-NMS while :func:`suppressing_by` says so.

    It builds on `_forward_box` and the test settings of `box_predictor`, one or one for each stage.

    Attributes:
        soft_nms: None, as ever outside of `suppressing_by`, is Detectron2's NMS.
    """

    soft_nms: SoftNms | None = None

    def _forward_box(self, features, proposals, *targets):
        """Losses, or detections; see Detectron2."""
        if self.training or self.soft_nms is None:
            return super()._forward_box(features, proposals, *targets)
        with ExitStack() as stack:
            for predictor in _predictors(self):
                stack.enter_context(_without_suppression(predictor))
            found = super()._forward_box(features, proposals, *targets)
        return [self.soft_nms(x) for x in found]


@contextmanager
def suppressing_by(heads: SoftNmsMixin, soft_nms: SoftNms | None) -> Iterator[None]:
    """Let heads use soft-NMS, or None, inside of a `with` statement."""
    before, heads.soft_nms = heads.soft_nms, soft_nms
    try:
        yield
    finally:
        heads.soft_nms = before


def _predictors(heads: SoftNmsMixin) -> list[FastRCNNOutputLayers]:
    predictor = heads.box_predictor
    return [*predictor] if isinstance(predictor, nn.ModuleList) else [predictor]


@contextmanager
def _without_suppression(predictor: FastRCNNOutputLayers) -> Iterator[None]:
    """Let Detectron2's inference give all detections above its score threshold."""
    before = predictor.test_nms_thresh, predictor.test_topk_per_image
    predictor.test_nms_thresh, predictor.test_topk_per_image = math.inf, -1
    try:
        yield
    finally:
        predictor.test_nms_thresh, predictor.test_topk_per_image = before
