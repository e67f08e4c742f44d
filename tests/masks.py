"""Made-up masks for labeled views and detections, and a small head that learns them."""

import torch
from detectron2.structures import BitMasks, Instances

from soft_teacher.modeling.guidance import Guidance
from tiny import detections, labeled_view, random_boxes

SIZE = (64, 80)
# Masks of 8 x 8 cells.
MASK_HEAD = {
    "MODEL.MASK_ON": True,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 4,
}


def ellipses(boxes: torch.Tensor, size: tuple[int, int]) -> BitMasks:
    """The ellipse in each box (R, 4), drawn in an image of (height, width)."""
    y, x = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    radius = (boxes[:, 2:] - boxes[:, :2]) / 2
    from_center = [
        (points - center[:, i, None, None]) / radius[:, i, None, None]
        for i, points in enumerate((x, y))
    ]
    return BitMasks(from_center[0] ** 2 + from_center[1] ** 2 <= 1)


def labeled_view_with_masks(seed: int, num_boxes: int = 3) -> dict:
    """A noise image whose objects are ellipses in random boxes."""
    view = labeled_view(seed, num_boxes, SIZE)
    instances = view["instances"]
    instances.gt_masks = ellipses(instances.gt_boxes.tensor, SIZE)
    return view


def with_masks(labels: Instances, side: int = 6, seed: int = 0) -> Instances:
    """Detections with random probabilities as masks, smooth enough to have an inside."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(len(labels), 1, 3, 3, generator=generator)
    if len(labels):
        labels.pred_masks = torch.nn.functional.interpolate(
            coarse, (side, side), mode="bilinear", align_corners=False
        )
    else:
        labels.pred_masks = coarse.new_zeros(0, 1, side, side)
    return labels


def confident_with_masks(teacher, weak: list[dict]) -> Guidance:
    """The teacher's guidance with its detections replaced by sure ones that have masks."""
    guidance = teacher.annotate(weak)
    labels = [
        with_masks(detections(random_boxes(i, 3, SIZE), [0.99] * 3), seed=i)
        for i in range(len(weak))
    ]
    return Guidance(labels, guidance.matrices, guidance._judge, guidance.rules)
