"""One box from the boxes that several looks at an image have found for an object."""

from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

MIN_IOU = 0.5
"""Overlap from which a box has a vote, as in the source of `average_boxes`."""


def average_boxes(kept: Instances, boxes: Tensor, scores: Tensor, classes: Tensor) -> Instances:
    """Move each box to the mean of all found boxes of its class that overlap it.

    They are weighted by their scores (box voting; Gidaris and Komodakis, ICCV 2015). Scores stay.

    Args:
        kept: K detections that are left of all after NMS, with `pred_boxes` and `pred_classes`.
        boxes: (N, 4) xyxy of all detections, those of `kept` among them, in the same frame.
        scores: (N,) above 0.
        classes: (N,).

    Returns:
        A copy of `kept` with other boxes.
    """
    votes = pairwise_iou(kept.pred_boxes, Boxes(boxes)) >= MIN_IOU
    votes &= kept.pred_classes[:, None] == classes
    weights = votes * scores
    fields = kept.get_fields() | {"pred_boxes": Boxes(weights @ boxes / weights.sum(1, True))}
    return Instances(kept.image_size, **fields)
