"""Which RoIs of an unlabeled image the student looks at, in one pass.

Shape shorthand: P boxes in the pool (proposals and pseudo boxes), S sampled for classification,
E extra ones for regression, F foreground of regression; all of one image.

The official code runs the student's RoI head twice: once on a sample drawn against G_cls, whose
regression loss it drops, and once on another drawn against G_reg, whose classification loss it
drops. Here the pool is matched twice but pooled once: the S RoIs of the first sample, plus those
foreground RoIs of the second that the first does not hold. With samples large enough to hold the
whole pool, both losses are those of the two separate passes, but for the normaliser of
regression, which counts the S RoIs of the first.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Match:
    """A pool matched with one set of pseudo boxes, and sampled.

    Attributes:
        rows: int64, indices of the sampled boxes in the pool.
        classes: int64, class of each; the number of classes stands for background.
        target: int64, index of the pseudo box that each sampled box is matched with.
        candidates: bool (P,), boxes of the pool that could be sampled.
    """

    rows: Tensor
    classes: Tensor
    target: Tensor
    candidates: Tensor

    def foreground(self, num_classes: int) -> "Match":
        """The foreground part of this sample."""
        mask = (self.classes >= 0) & (self.classes < num_classes)
        return Match(self.rows[mask], self.classes[mask], self.target[mask], self.candidates)


@dataclass
class UnlabeledSample:
    """RoIs of one unlabeled image: S for classification, then E for regression alone.

    Attributes:
        boxes: (S + E, 4), xyxy, student's view.
        classes: int64 (S,), class of the first S boxes, background included.
        reg_rows: int64 (F,), rows of `boxes` that regression learns from.
        reg_classes: int64 (F,), their classes.
        reg_boxes: (F, 4), their pseudo boxes.
        reg_candidates: bool (S + E,), RoIs that a later stage may match for regression: not those
            that come from a pseudo box which teaches classification alone.
    """

    boxes: Tensor
    classes: Tensor
    reg_rows: Tensor
    reg_classes: Tensor
    reg_boxes: Tensor
    reg_candidates: Tensor

    @property
    def num_sampled(self) -> int:
        return self.classes.shape[0]


def join_matches(
    pool: Tensor, cls_match: Match, reg_match: Match, targets: Tensor
) -> UnlabeledSample:
    """Lay out the RoIs of a classification sample and of the foreground for regression.

    Args:
        pool: (P, 4).
        cls_match: sample of S boxes drawn against G_cls.
        reg_match: F foreground boxes drawn against G_reg.
        targets: (R, 4), pseudo boxes that `reg_match.target` points into.

    Returns:
        The `UnlabeledSample`.
    """
    num_sampled = cls_match.rows.numel()
    row_of = torch.full((pool.shape[0],), -1, dtype=torch.int64, device=pool.device)
    row_of[cls_match.rows] = torch.arange(num_sampled, device=pool.device)
    extra = reg_match.rows[row_of[reg_match.rows] < 0]
    row_of[extra] = num_sampled + torch.arange(extra.numel(), device=pool.device)
    rows = torch.cat([cls_match.rows, extra])
    return UnlabeledSample(
        boxes=pool[rows],
        classes=cls_match.classes,
        reg_rows=row_of[reg_match.rows],
        reg_classes=reg_match.classes,
        reg_boxes=targets[reg_match.target],
        reg_candidates=reg_match.candidates[rows],
    )
