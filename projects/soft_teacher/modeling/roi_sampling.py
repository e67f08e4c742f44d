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
from detectron2.structures import Instances
from torch import Tensor

from soft_teacher.modeling.masked_rows import rows_where


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

    def part(self, rows: Tensor) -> "Match":
        """The sampled boxes of these rows."""
        return Match(self.rows[rows], self.classes[rows], self.target[rows], self.candidates)


def foreground(matches: list[Match], num_classes: int) -> list[Match]:
    """The foreground part of each sample."""
    rows = rows_where([(m.classes >= 0) & (m.classes < num_classes) for m in matches])
    return [match.part(x) for match, x in zip(matches, rows, strict=True)]


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
    pools: list[Tensor],
    cls_matches: list[Match],
    reg_matches: list[Match],
    targets: list[Instances],
) -> list[UnlabeledSample]:
    """Lay out the RoIs of a classification sample and of the foreground for regression.

    Args:
        pools: of each of N images (P, 4).
        cls_matches: N samples of S boxes drawn against G_cls.
        reg_matches: N times F foreground boxes drawn against G_reg.
        targets: N `Instances` with `gt_boxes`, pseudo boxes that `reg_matches` point into.
    """
    rows_of = [_rows_in_sample(p, m) for p, m in zip(pools, cls_matches, strict=True)]
    extra = rows_where([x[m.rows] < 0 for x, m in zip(rows_of, reg_matches, strict=True)])
    return [
        _join(pool, row_of, cls, reg, reg.rows[rows], x.gt_boxes.tensor)
        for pool, row_of, cls, reg, rows, x in zip(
            pools, rows_of, cls_matches, reg_matches, extra, targets, strict=True
        )
    ]


def _rows_in_sample(pool: Tensor, match: Match) -> Tensor:
    """Of each box of a pool its row in a sample, or -1: int64 (P,)."""
    row_of = torch.full((pool.shape[0],), -1, dtype=torch.int64, device=pool.device)
    row_of[match.rows] = torch.arange(match.rows.numel(), device=pool.device)
    return row_of


def _join(
    pool: Tensor,
    row_of: Tensor,
    cls_match: Match,
    reg_match: Match,
    extra: Tensor,
    targets: Tensor,
) -> UnlabeledSample:
    """The sample of one image, from what :func:`join_matches` takes of it.

    Args:
        pool, cls_match, reg_match: of the image.
        row_of: from :func:`_rows_in_sample`.
        extra: int64 (E,), boxes of the pool that regression alone learns from.
        targets: (R, 4).
    """
    num_sampled = cls_match.rows.numel()
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
