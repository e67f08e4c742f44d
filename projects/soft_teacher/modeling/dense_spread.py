"""How far to trust the place of a pseudo box where there is no RoI head to jitter it with.

A dense detector predicts an object from many places at once, and NMS keeps one of the boxes. How
far the others of the same class lie apart stands in for box jittering (section 3.3): where the
teacher is sure of the edges, its predictions agree. Formulas are those of eq. 8 and 9.
"""

from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances, pairwise_iou
from torch import Tensor

from soft_teacher.modeling.box_jitter import relative_deviation

TINY = 1e-6
"""Keeps divisors above zero where nothing counts."""


class SpreadRules(NamedTuple):
    """Which predictions belong to a pseudo box, see SOFT_TEACHER.SPREAD.

    Attributes:
        iou: overlap with the pseudo box above which a prediction of its class counts.
        min_boxes: predictions below which there is no spread.
        definition: SOFT_TEACHER.JITTER.VARIANCE.
    """

    iou: float
    min_boxes: int
    definition: str

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "SpreadRules":
        """Read the rules from a config.

        Raises:
            ValueError: a key of SOFT_TEACHER.SPREAD is out of its range.
        """
        spread = cfg.SOFT_TEACHER.SPREAD
        if not 0 < spread.IOU < 1:
            raise ValueError(
                f"SOFT_TEACHER.SPREAD.IOU is {spread.IOU}; it is an overlap: above 0, below 1."
            )
        if spread.MIN_BOXES < 2:
            raise ValueError(
                f"SOFT_TEACHER.SPREAD.MIN_BOXES is {spread.MIN_BOXES}, but a deviation needs at "
                "least 2 boxes."
            )
        return cls(spread.IOU, spread.MIN_BOXES, cfg.SOFT_TEACHER.JITTER.VARIANCE)


@torch.no_grad()
def prediction_spread(labels: Instances, predictions: Instances, rules: SpreadRules) -> Tensor:
    """Relative standard deviation of the predictions around each pseudo box; low means reliable.

    Each prediction counts by the square of its score: there are many weak ones around any object,
    and those are far off around well placed boxes too.

    Args:
        labels: R pseudo boxes of an image, `pred_boxes` and `pred_classes`.
        predictions: C boxes of the same image before NMS, same fields, and `scores`.
        rules: which of them count.

    Returns:
        (R,); infinite where fewer than `min_boxes` predictions count.
    """
    boxes, candidates = labels.pred_boxes.tensor, predictions.pred_boxes.tensor
    counts = (pairwise_iou(labels.pred_boxes, predictions.pred_boxes) > rules.iou) & (
        labels.pred_classes[:, None] == predictions.pred_classes
    )
    weights = counts * predictions.scores.float() ** 2  # (R, C)
    mean, deviations = _weighted_deviation(candidates, weights)
    spread = relative_deviation(deviations, mean, boxes, rules.definition)
    return torch.where(counts.sum(dim=1) >= rules.min_boxes, spread, torch.inf)


def _weighted_deviation(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation of values (C, 4) by weights (R, C): (R, 4) each.

    The deviation is the unbiased one; with equal weights its denominator is their number minus 1.
    """
    # Sums and not matrix products, which autocast would round to half precision.
    total = weights.sum(dim=1)
    share = (weights / total.clamp(min=TINY)[:, None])[:, :, None]
    mean = (share * values).sum(dim=1)
    variance = (share * (values - mean[:, None]) ** 2).sum(dim=1)
    bias = (share**2).sum(dim=1)
    return mean, (variance / (1.0 - bias).clamp(min=TINY)).sqrt()
