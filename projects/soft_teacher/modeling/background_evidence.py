"""What the indicators of `reliability` need to know of sampled RoIs before the student's pass.

Shape shorthand: N images, P_i boxes in the pool of image i, R sampled RoIs of all images.
"""

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from soft_teacher.modeling.guidance import GuidanceInView
from soft_teacher.modeling.roi_sampling import Match


@torch.no_grad()
def gather_evidence(
    needs: tuple[str, ...],
    pools: list[Tensor],
    matches: list[Match],
    num_classes: int,
    guidance: GuidanceInView,
) -> dict[str, Tensor]:
    """Ask the teacher, or measure overlaps, for the RoIs sampled for classification.

    Args:
        needs: see `reliability.Indicator`. "student" is not for this function: the student's
            scores come with its pass over the RoIs.
        pools: N tensors (P_i, 4), xyxy, student's view.
        matches: N samples of them.
        num_classes: K, the class of background.
        guidance: bound to the student's views.

    Returns:
        Name -> (R,). Of the teacher only background RoIs are asked for; foreground ones hold 1.
    """
    evidence = {}
    if "teacher" in needs:
        evidence["teacher"] = _teacher_scores(pools, matches, num_classes, guidance)
    if "iou" in needs:
        evidence["iou"] = torch.cat(
            [
                largest_iou(pool[m.rows], targets.gt_boxes.tensor[mask])
                for pool, m, targets, mask in zip(
                    pools, matches, guidance.targets, guidance.teaches_cls, strict=True
                )
            ]
        )
    return evidence


def _teacher_scores(
    pools: list[Tensor], matches: list[Match], num_classes: int, guidance: GuidanceInView
) -> Tensor:
    is_background = [m.classes == num_classes for m in matches]
    boxes = [
        pool[m.rows[mask]] for pool, m, mask in zip(pools, matches, is_background, strict=True)
    ]
    asked = torch.cat(guidance.background_scores(boxes))
    scores = asked.new_ones(sum(len(m.rows) for m in matches))
    scores[torch.cat(is_background)] = asked
    return scores


def largest_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Of each of (B, 4) boxes the largest IoU with one of (M, 4) others: (B,), 0 if M is 0."""
    if len(others) == 0:
        return boxes.new_zeros(len(boxes))
    return pairwise_iou(Boxes(boxes), Boxes(others)).max(dim=1).values
