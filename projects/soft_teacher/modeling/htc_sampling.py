"""Which RoIs a stage of HTC learns from: matched and sampled anew in every stage.

Shape shorthand: N images; of one image P boxes that enter a stage, S RoIs sampled for
classification, E extra ones for regression.

mmdetection's way, for Cascade R-CNN as for HTC: in each stage ground truth joins the boxes that
enter, they are matched at the stage's IoU threshold, and 512 are sampled. Those that are not
ground truth themselves are refined and enter the next stage.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

from soft_teacher.modeling.masked_rows import rows_where
from soft_teacher.modeling.roi_sampling import UnlabeledSample

Sampler = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Detectron2's `_sample_proposals`: the row of ground truth and the label of each box, and the
classes of ground truth -> rows and classes of a sample."""


@torch.no_grad()
def label_and_sample(
    boxes: Boxes, targets: Instances, matcher: Matcher, sample: Sampler, append_targets: bool
) -> Instances:
    """The RoIs of a labeled image at one stage.

    Args:
        boxes: P boxes that enter the stage.
        targets: ground truth, fields named "gt_...".
        matcher: of the stage.
        sample: draws from the matched boxes.
        append_targets: whether ground truth joins the boxes.

    Returns:
        S RoIs with `proposal_boxes`, `is_target` (whether the RoI is a box of ground truth),
        `gt_classes`, K for background, and, where there is ground truth, its other fields of the
        object that a RoI is matched with, without meaning for background.
    """
    pool = Boxes.cat([boxes, targets.gt_boxes]) if append_targets else boxes
    matched, labels = matcher(pairwise_iou(targets.gt_boxes, pool))
    rows, classes = sample(matched, labels, targets.gt_classes)
    rois = Instances(
        targets.image_size,
        proposal_boxes=pool[rows],
        is_target=rows >= len(boxes),
        gt_classes=classes,
    )
    if len(targets):
        for name, value in targets.get_fields().items():
            if name.startswith("gt_") and name != "gt_classes":
                rois.set(name, value[matched[rows]])
    return rois


@dataclass
class Entering:
    """The boxes that enter a stage, of one unlabeled image.

    Attributes:
        boxes: (P, 4), xyxy, student's view.
        for_cls: bool (P,), those that classification and masks may sample. The others come from
            RoIs that were sampled for regression alone.
    """

    boxes: Tensor
    for_cls: Tensor


def entering_first_stage(proposals: list[Instances]) -> list[Entering]:
    """All proposals of N images."""
    boxes = [x.proposal_boxes.tensor for x in proposals]
    return [Entering(x, torch.ones(len(x), dtype=torch.bool, device=x.device)) for x in boxes]


@torch.no_grad()
def entering_next_stage(samples: list[UnlabeledSample], refined: list[Boxes]) -> list[Entering]:
    """What a stage hands on: its RoIs as it refined them, but for pseudo boxes.

    Args:
        samples: of N images, the RoIs of the stage; `reg_candidates` are those that are handed on.
        refined: N times S + E boxes; those without area are dropped.
    """
    kept = rows_where(
        [x.nonempty() & sample.reg_candidates for x, sample in zip(refined, samples, strict=True)]
    )
    return [
        Entering(boxes.tensor[rows], rows < sample.num_sampled)
        for boxes, rows, sample in zip(refined, kept, samples, strict=True)
    ]
