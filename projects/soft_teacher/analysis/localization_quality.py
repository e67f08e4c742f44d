"""How good pseudo boxes are, and how well score and variance tell (figure 3 of the paper).

The paper leaves open how a box is compared with the ground truth, so both ways are measured:

- The **IoU** of a pseudo box is its largest one with an object of its class, 0 if there is none;
  its **IoU of any class** is the largest one with any object.
- A pseudo box is **right** if it gets an object: the boxes choose in the order of their scores,
  each takes the free object of its class that it overlaps most, if the IoU is at least 0.5.
- **Precision** is right boxes / boxes above the threshold, **recall** right boxes / objects.
  Crowds are no objects.

A rank correlation with the IoU of all boxes also rewards who tells wrong boxes from right ones;
that of the boxes with an IoU of at least 0.5 is about the place alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances, pairwise_iou
from torch import Tensor

from soft_teacher.analysis.matching import match_by_score, overlaps_of_class
from soft_teacher.analysis.rank_correlation import (
    RankedValues,
    bootstrap_over_images,
    interval,
    rank_correlation,
)

IOU_THRESHOLD = 0.5
# Of the boxes that are looked at on their own: sec. 3.3 estimates variances above 0.5, and
# classification learns from boxes above 0.9 (table 8).
SCORE_THRESHOLDS = (0.5, 0.9)

OWN_CLASS, ANY_CLASS, ON_OBJECT = "own class", "any class", "on an object"
KINDS = (OWN_CLASS, ANY_CLASS, ON_OBJECT)
"""All boxes by their IoU, all by their IoU of any class, and those of an IoU of at least 0.5."""


@dataclass(frozen=True)
class MeasuredBoxes:
    """Pseudo boxes of N images, B in all.

    Attributes:
        image: int64 (B,), number of the image, below N.
        category: int64 (B,), class.
        score: float64 (B,), foreground score.
        variance: float64 (B,), box regression variance.
        iou, iou_any_class: float64 (B,), see above.
        right: bool (B,), see above.
        num_objects: int64 (N,), objects of each image.
    """

    image: np.ndarray
    category: np.ndarray
    score: np.ndarray
    variance: np.ndarray
    iou: np.ndarray
    iou_any_class: np.ndarray
    right: np.ndarray
    num_objects: np.ndarray

    def __len__(self) -> int:
        return len(self.score)

    def where(self, mask: np.ndarray) -> "MeasuredBoxes":
        """The boxes of a mask (B,), among the same images."""
        columns = {x.name: getattr(self, x.name) for x in fields(self)}
        of_images = columns.pop("num_objects")
        return MeasuredBoxes(**{k: v[mask] for k, v in columns.items()}, num_objects=of_images)


def measure_boxes(labels: Instances, variance: Tensor, truth: Instances) -> MeasuredBoxes:
    """Compare the pseudo boxes of one image with its objects.

    Args:
        labels: R pseudo boxes with `pred_boxes`, `pred_classes` and `scores`, on the CPU.
        variance: (R,).
        truth: `gt_boxes` and `gt_classes` of the objects, in the same frame.
    """
    overlaps = overlaps_of_class(
        labels.pred_boxes, labels.pred_classes, truth.gt_boxes, truth.gt_classes
    )
    objects = match_by_score(overlaps, labels.scores, IOU_THRESHOLD)
    return MeasuredBoxes(
        image=np.zeros(len(labels), np.int64),
        category=labels.pred_classes.numpy(),
        score=labels.scores.double().numpy(),
        variance=variance.double().numpy(),
        iou=_largest(overlaps),
        iou_any_class=_largest(pairwise_iou(labels.pred_boxes, truth.gt_boxes)),
        right=(objects >= 0).numpy(),
        num_objects=np.array([len(truth)]),
    )


def _largest(overlaps: Tensor) -> np.ndarray:
    """The largest IoU of each row of (R, G), 0 where there is no object."""
    nothing = overlaps.new_zeros(len(overlaps), 1)
    return torch.cat([overlaps, nothing], dim=1).amax(dim=1).double().numpy()


def join_images(images: Iterable[MeasuredBoxes]) -> MeasuredBoxes:
    """The boxes of one image each as one table, the images numbered in their order."""
    parts = list(images)
    assert all(len(x.num_objects) == 1 for x in parts)
    return MeasuredBoxes(
        image=np.repeat(np.arange(len(parts)), [len(x) for x in parts]),
        **{
            field.name: np.concatenate([getattr(x, field.name) for x in parts])
            for field in fields(MeasuredBoxes)
            if field.name != "image"
        },
    )


def quality_at(boxes: MeasuredBoxes, thresholds: Iterable[float]) -> list[dict[str, Any]]:
    """Precision and recall of the boxes whose score is strictly above each threshold.

    Returns:
        One dict for each: "threshold", "boxes", "right", "precision" (None without a box),
        "recall" (None without an object).
    """
    num_objects = int(boxes.num_objects.sum())
    rows = []
    for threshold in thresholds:
        above = boxes.score > threshold
        count, right = int(above.sum()), int((above & boxes.right).sum())
        rows.append(
            {
                "threshold": threshold,
                "boxes": count,
                "right": right,
                "precision": right / count if count else None,
                "recall": right / num_objects if num_objects else None,
            }
        )
    return rows


def correlations(
    boxes: MeasuredBoxes, min_score: float, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """Rank correlations with the IoU, of all boxes and of those above 0.5 and 0.9.

    Args:
        boxes: of all images.
        min_score: that they were detected with.
        resamples: of the bootstrap over images.
        seed: of the bootstrap.

    Returns:
        One dict for each choice of boxes: "kind" (see `KINDS`), "above" (score), "boxes" (their
        number), and "score", "variance" and "advantage", each {"value", "interval"}; see
        :func:`_correlate`. What is not defined is None.
    """
    rows = []
    for kind in KINDS:
        for above in (min_score, *(x for x in SCORE_THRESHOLDS if x > min_score)):
            chosen = boxes.score > above
            if kind == ON_OBJECT:
                chosen = chosen & (boxes.iou >= IOU_THRESHOLD)
            part = boxes.where(chosen)
            iou = part.iou_any_class if kind == ANY_CLASS else part.iou
            row = {"kind": kind, "above": above, "boxes": len(part)}
            rows.append(row | _correlate(part, iou, resamples, seed))
    return rows


def _correlate(boxes: MeasuredBoxes, iou: np.ndarray, resamples: int, seed: int) -> dict[str, Any]:
    """Rank correlations of score and of variance with the IoU, and which says more.

    The advantage of the variance is (- rho of variance) - (rho of score). That is
    |rho of variance| - |rho of score| as long as both point where they should, a low variance
    and a high score to a high IoU; one that points the other way counts against itself.
    """
    place, score, variance = (RankedValues(x) for x in (iou, boxes.score, boxes.variance))

    def statistic(weights: np.ndarray | None) -> list[float]:
        of_score = rank_correlation(score, place, weights)
        of_variance = rank_correlation(variance, place, weights)
        return [of_score, of_variance, -of_variance - of_score]

    values = statistic(None)
    samples = bootstrap_over_images(statistic, boxes.image, len(boxes.num_objects), resamples, seed)
    return {
        name: {"value": value if np.isfinite(value) else None, "interval": interval(drawn)}
        for name, value, drawn in zip(
            ("score", "variance", "advantage"), values, samples.T, strict=True
        )
    }
