"""How many pseudo boxes are right, and how many objects they find (figure 3a)."""

from detectron2.structures import Boxes
from torch import Tensor

from soft_teacher.analysis.matching import overlaps_of_class


def match_counts(
    pred_boxes: Boxes,
    pred_classes: Tensor,
    gt_boxes: Boxes,
    gt_classes: Tensor,
    iou_threshold: float = 0.5,
) -> tuple[int, int, int]:
    """Count correct pseudo boxes of one image.

    A pseudo box is correct if it overlaps an object of its class by at least the threshold; an
    object counts for one pseudo box only, the pairs of largest overlap first.

    Args:
        pred_boxes: R pseudo boxes.
        pred_classes: int64 (R,).
        gt_boxes: G true boxes in the same frame.
        gt_classes: int64 (G,).
        iou_threshold: smallest overlap.

    Returns:
        Number of correct pseudo boxes, R, and G. Precision is correct / R, recall correct / G.
    """
    num_pseudo, num_truth = len(pred_boxes), len(gt_boxes)
    if num_pseudo == 0 or num_truth == 0:
        return 0, num_pseudo, num_truth
    overlaps = overlaps_of_class(pred_boxes, pred_classes, gt_boxes, gt_classes)
    correct = 0
    while True:
        best = int(overlaps.argmax())
        row, column = divmod(best, num_truth)
        if overlaps[row, column] < iou_threshold:
            return correct, num_pseudo, num_truth
        correct += 1
        overlaps[row] = 0.0
        overlaps[:, column] = 0.0
