"""Which of the teacher's detections teach what (sections 3.1 and 3.3).

Pseudo labels are Detectron2 `Instances` with the fields `pred_boxes`, `pred_classes` and
`scores`, in the frame of the weak view until :func:`carry_to_view` turns them into targets.
"""

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from soft_teacher.modeling.masked_rows import rows_where
from soft_teacher.modeling.view_geometry import project_boxes


def above_score(labels: Instances, threshold: float) -> Tensor:
    """Mask (R,) of pseudo boxes whose foreground score is strictly above the threshold."""
    return labels.scores > threshold


def below_variance(variance: Tensor, threshold: float) -> Tensor:
    """Mask (R,) of pseudo boxes whose box regression variance is strictly below the threshold."""
    return variance < threshold


def carry_to_view(
    labels: Instances, matrix: Tensor, image_size: tuple[int, int], outline: str
) -> Instances:
    """Make training targets of one image's pseudo labels, in the frame of another view.

    Args:
        labels: pseudo labels of one image in the weak view.
        matrix: (3, 3), weak view -> target view.
        image_size: (height, width) of the target view.
        outline: of :func:`project_boxes`.

    Returns:
        `Instances` with `gt_boxes`, `gt_classes`, one for each label and in the same order;
        a box without area is one that left the view (see :func:`has_area`).
    """
    boxes = project_boxes(labels.pred_boxes.tensor, matrix, image_size, outline)
    return Instances(
        image_size,
        gt_boxes=Boxes(boxes),
        gt_classes=labels.pred_classes,
    )


def has_area(targets: Instances) -> Tensor:
    """Mask (R,) of target boxes that have a width and a height above zero."""
    return targets.gt_boxes.nonempty()


def select(instances: list[Instances], masks: list[Tensor]) -> list[Instances]:
    """Keep in each image the pseudo labels or targets that its mask (R,) names."""
    return [x[rows] for x, rows in zip(instances, rows_where(masks), strict=True)]


def confident(detections: list[Instances], min_score: float) -> list[Instances]:
    """The detections of each image that have a score above a threshold, and an area."""
    return select(
        detections, [above_score(x, min_score) & x.pred_boxes.nonempty() for x in detections]
    )


def count_per_image(masks: list[Tensor]) -> Tensor:
    """Mean number of chosen boxes per image, as a 0-d tensor (no host sync)."""
    return torch.cat(masks).sum() / len(masks)
