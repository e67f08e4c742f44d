"""Which RoIs of an unlabeled image a later stage of a cascade learns from.

Shape shorthand: S RoIs sampled for classification and E extra ones for regression, of one image;
F foreground of regression; K classes.

The RoIs of a stage are those of the stage before it, as that stage refined them. They are matched
anew, with the stage's own IoU threshold, and not sampled again, as Detectron2 does it. There are
two sets of pseudo boxes: the first S RoIs are matched with G_cls; the RoIs that the sample drawn
against G_reg could have held are matched with G_reg. As refinement does not depend on the class,
it does not depend on the set either, so one pass serves both. With samples that hold the whole
pool, the losses of every stage are those of two separate cascades, one for each set, but for the
normaliser of regression (see `roi_sampling`).
"""

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

from soft_teacher.modeling.roi_sampling import UnlabeledSample


@torch.no_grad()
def sample_of_next_stage(
    sample: UnlabeledSample,
    refined: Boxes,
    targets: Instances,
    teaches_cls: Tensor,
    teaches_reg: Tensor,
    matcher: Matcher,
    num_classes: int,
) -> UnlabeledSample:
    """Match the refined RoIs of one image with both sets of pseudo boxes.

    Args:
        sample: the S + E RoIs of the stage before.
        refined: S + E, what that stage made of them, in the same order; those without area are
            dropped.
        targets: R pseudo boxes, `gt_boxes` and `gt_classes`, student's view.
        teaches_cls: bool (R,), those in G_cls.
        teaches_reg: bool (R,), those in G_reg.
        matcher: of the stage; labels 1 are foreground.
        num_classes: K.
    """
    kept = refined.nonempty()
    num_sampled = int(kept[: sample.num_sampled].sum())
    boxes, candidates = refined[kept], sample.reg_candidates[kept]
    classes, _ = match_boxes(boxes, targets, teaches_cls, matcher, num_classes)
    reg_classes, partner = match_boxes(boxes, targets, teaches_reg, matcher, num_classes)
    reg_rows = ((reg_classes < num_classes) & candidates).nonzero().squeeze(1)
    return UnlabeledSample(
        boxes=boxes.tensor,
        classes=classes[:num_sampled],
        reg_rows=reg_rows,
        reg_classes=reg_classes[reg_rows],
        reg_boxes=targets.gt_boxes.tensor[partner[reg_rows]],
        reg_candidates=candidates,
    )


def match_boxes(
    boxes: Boxes, targets: Instances, chosen: Tensor, matcher: Matcher, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Class and pseudo box of each of B boxes, by those targets that a mask (R,) names.

    Returns:
        int64 (B,) classes, K for background; int64 (B,) rows of `targets`, without meaning for
        background.
    """
    indices = chosen.nonzero().squeeze(1)
    if len(indices) == 0:
        nothing = indices.new_zeros(len(boxes))
        return nothing + num_classes, nothing
    matched, labels = matcher(pairwise_iou(targets.gt_boxes[indices], boxes))
    partner = indices[matched]
    classes = targets.gt_classes[partner]
    return torch.where(labels == 1, classes, torch.full_like(classes, num_classes)), partner
