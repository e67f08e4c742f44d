"""Which detections of an image are right, in the order of their scores as COCO's AP counts them."""

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor


def overlaps_of_class(
    boxes: Boxes, classes: Tensor, true_boxes: Boxes, true_classes: Tensor
) -> Tensor:
    """IoU of detections and objects, 0 where their classes differ.

    Args:
        boxes: R detections.
        classes: int64 (R,).
        true_boxes: G objects in the same frame.
        true_classes: int64 (G,).

    Returns:
        (R, G).
    """
    overlaps = pairwise_iou(boxes, true_boxes)
    overlaps[classes[:, None] != true_classes[None, :]] = 0.0
    return overlaps


def match_by_score(overlaps: Tensor, scores: Tensor, iou_threshold: float = 0.5) -> Tensor:
    """Give each object to one detection at most; the highest scores choose first.

    A detection takes the object that it overlaps most among those that are free, if by at least
    the threshold. So what the detections above any score get does not depend on those below.

    Args:
        overlaps: (R, G) from :func:`overlaps_of_class`.
        scores: (R,); of equal ones the first chooses first.
        iou_threshold: smallest overlap, above 0.

    Returns:
        int64 (R,): the number of the object, -1 for a detection that is wrong.
    """
    assert iou_threshold > 0, iou_threshold
    objects = torch.full(scores.shape, -1, dtype=torch.int64)
    if overlaps.shape[1] == 0:
        return objects
    free = overlaps.clone()
    for i in scores.argsort(descending=True, stable=True).tolist():
        best = int(free[i].argmax())
        if free[i, best] >= iou_threshold:
            objects[i] = best
            free[:, best] = 0.0
    return objects
