"""What the indicators of `reliability` need to know of sampled RoIs before the student's pass.

Shape shorthand: N images, R_i sampled RoIs of image i, R of all images.
"""

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from soft_teacher.modeling.guidance import GuidanceInView
from soft_teacher.modeling.masked_rows import rows_where


@torch.no_grad()
def gather_evidence(
    needs: tuple[str, ...],
    boxes: list[Tensor],
    classes: list[Tensor],
    num_classes: int,
    guidance: GuidanceInView,
    stage: int | None = None,
) -> dict[str, Tensor]:
    """Ask the teacher, or measure overlaps, for the RoIs sampled for classification.

    Args:
        needs: see `reliability.Indicator`. "student" is not for this function: the student's
            scores come with its pass over the RoIs.
        boxes: N tensors (R_i, 4), xyxy, student's view.
        classes: N int64 tensors (R_i,), what they were matched with.
        num_classes: K, the class of background.
        guidance: bound to the student's views.
        stage: the stage of the teacher to ask, or None for the whole teacher.

    Returns:
        Name -> (R,). Of the teacher only background RoIs are asked for; foreground ones hold 1.
    """
    evidence = {}
    if "teacher" in needs:
        is_background = [x == num_classes for x in classes]
        evidence["teacher"] = _teacher_scores(boxes, is_background, guidance, stage)
    if "iou" in needs:
        evidence["iou"] = torch.cat(
            [
                largest_iou(x, targets.gt_boxes.tensor[mask])
                for x, targets, mask in zip(
                    boxes, guidance.targets, guidance.teaches_cls, strict=True
                )
            ]
        )
    return evidence


def _teacher_scores(
    boxes: list[Tensor], is_background: list[Tensor], guidance: GuidanceInView, stage: int | None
) -> Tensor:
    all_rows = rows_where(is_background)
    background = [x[rows] for x, rows in zip(boxes, all_rows, strict=True)]
    asked = guidance.background_scores(background, stage)
    scores = [
        found.new_ones(len(x)).index_copy(0, rows, found)
        for x, rows, found in zip(boxes, all_rows, asked, strict=True)
    ]
    return torch.cat(scores)


def largest_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Of each of (B, 4) boxes the largest IoU with one of (M, 4) others: (B,), 0 if M is 0."""
    if len(others) == 0:
        return boxes.new_zeros(len(boxes))
    return pairwise_iou(Boxes(boxes), Boxes(others)).max(dim=1).values
