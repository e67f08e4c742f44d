"""The mask loss on unlabeled images: the teacher's masks teach the student's mask head.

Shape shorthand: N images, F foreground RoIs of all images, K classes, M x M cells of a mask. How
masks get from the teacher's view into RoIs of the student's is said in `pseudo_masks`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead
from detectron2.structures import Boxes, Instances
from torch import Tensor

from soft_teacher.modeling.guidance import GuidanceInView, check_choice
from soft_teacher.modeling.masked_rows import rows_where
from soft_teacher.modeling.roi_sampling import Match, foreground

MASK_TARGETS = ("hard", "soft")
# From the detections of N images to those that are worth a mask.
Choice = Callable[[list[Instances]], list[Instances]]


@dataclass(frozen=True)
class MaskRules:
    """What the teacher's masks teach, see SOFT_TEACHER.MASK.

    Attributes:
        target: "hard" or "soft".
        threshold: probability from which on a cell is foreground.
        loss_weight: multiplies the loss, beside alpha.
    """

    target: str
    threshold: float
    loss_weight: float

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "MaskRules":
        """Read the rules from a config.

        Raises:
            ValueError: a key has a value that is not among its choices.
        """
        mask = cfg.SOFT_TEACHER.MASK
        check_choice("SOFT_TEACHER.MASK.TARGET", mask.TARGET, MASK_TARGETS)
        if not 0 < mask.THRESHOLD < 1:
            raise ValueError(
                f"SOFT_TEACHER.MASK.THRESHOLD is {mask.THRESHOLD}; it must lie between 0 and 1, as "
                "the probabilities that it divides do."
            )
        return cls(mask.TARGET, mask.THRESHOLD, mask.LOSS_WEIGHT)

    def targets(self, probabilities: Tensor) -> Tensor:
        """What the student learns from the teacher's probabilities: themselves, or 0 and 1."""
        if self.target == "soft":
            return probabilities
        return (probabilities >= self.threshold).to(probabilities.dtype)


class PseudoMaskMixin:
    """Adds to a Detectron2 RoI head the mask loss on unlabeled images.

    The head's `soft_teacher.mask_rules` say how. It knows one mask head; a head with several says
    so by :meth:`_predict_masks` and `stage`.

    Attributes:
        drawn: which detections are kept, and get masks; None, as ever outside of
            :func:`drawing_masks_in`, is all.
    """

    drawn: Choice | None = None

    def forward_with_given_boxes(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Masks for detections, see Detectron2."""
        choosing = self.mask_on and self.drawn is not None
        chosen = self.drawn(instances) if choosing else instances
        return super().forward_with_given_boxes(features, chosen)

    def _check_mask_head(self) -> None:
        if self.mask_on and not isinstance(self.mask_head, BaseMaskRCNNHead):
            raise ValueError(
                f"MODEL.ROI_MASK_HEAD.NAME names a {type(self.mask_head).__name__}, which does not "
                "predict one grid of logits for each RoI; take MaskRCNNConvUpsampleHead or set "
                "MODEL.MASK_ON to False."
            )

    def _predict_masks(
        self, features: dict[str, Tensor], boxes: list[Tensor], stage: int | None = None
    ) -> Tensor:
        """Mask logits (F, K, M, M), or (F, 1, M, M) if agnostic, of boxes in N images."""
        assert stage is None, stage
        # In float, as for boxes: half precision would move the RoIs against their targets.
        levels = [features[f].float() for f in self.mask_in_features]
        return self.mask_head.layers(self.mask_pooler(levels, [Boxes(x) for x in boxes])).float()

    def unlabeled_mask_losses(
        self,
        features: dict[str, Tensor],
        pools: list[Tensor],
        matches: list[Match],
        guidance: GuidanceInView,
        stage: int | None = None,
    ) -> dict[str, Tensor]:
        """The mask loss of the foreground RoIs whose pseudo boxes teach masks.

        Args:
            features: the student's feature maps of N strong views.
            pools: N tensors (P_i, 4), xyxy, candidate RoIs.
            matches: N samples of them, drawn against G_cls.
            guidance: bound to the strong views; its normalizers are filled in.
            stage: which of several mask heads learns; None if there is one.

        Returns:
            "loss_mask", with "_stage" and its number behind it if there is one, 0-d; nothing if
            the head has no masks.
        """
        if not self.mask_on:
            return {}
        chosen = teaching(foreground(matches, self.num_classes), guidance.teaches_mask)
        boxes = [pool[match.rows] for pool, match in zip(pools, chosen, strict=True)]
        classes = torch.cat([match.classes for match in chosen])
        logits = logits_of_classes(self._predict_masks(features, boxes, stage), classes)
        probabilities, known = guidance.masks_in(
            boxes, [match.target for match in chosen], logits.shape[-1]
        )
        suffix = "" if stage is None else f"_stage{stage}"
        rules = self.soft_teacher.mask_rules
        note_agreement(logits, probabilities >= rules.threshold, known, guidance, suffix)
        guidance.normalizers[f"loss_mask{suffix}"] = logits.new_full((), len(logits))
        loss = mask_loss(logits, rules.targets(probabilities), known)
        head = self.mask_head if stage is None else self.mask_head[stage]
        return {f"loss_mask{suffix}": loss * rules.loss_weight * head.loss_weight}


@contextmanager
def drawing_masks_in(heads: PseudoMaskMixin, choice: Choice) -> Iterator[None]:
    """Let heads keep, and draw masks in, chosen detections alone, inside of a `with` statement."""
    before, heads.drawn = heads.drawn, choice
    try:
        yield
    finally:
        heads.drawn = before


def teaching(matches: list[Match], teaches: list[Tensor]) -> list[Match]:
    """The parts of foreground samples whose pseudo boxes are chosen by masks (R,) over them."""
    rows = rows_where([x[m.target] for x, m in zip(teaches, matches, strict=True)])
    return [match.part(x) for match, x in zip(matches, rows, strict=True)]


def logits_of_classes(logits: Tensor, classes: Tensor) -> Tensor:
    """Of logits (F, K, M, M) those of the class of each (F,); of (F, 1, M, M) the only ones."""
    if logits.shape[1] == 1:
        return logits[:, 0]
    return logits[torch.arange(len(classes), device=classes.device), classes]


def mask_loss(logits: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """Binary cross entropy of the known cells, divided by the number of all F x M x M cells.

    Where all is known this is the mean that Detectron2 takes on labeled images. An unknown cell
    adds 0 but is counted: it takes nothing from the loss of the cells beside it and gives them no
    more weight.

    Args:
        logits: (F, M, M).
        targets: (F, M, M), in 0-1.
        known: bool (F, M, M).

    Returns:
        0-d; zero and connected to the graph where there are no RoIs.
    """
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (losses * known).sum() / max(losses.numel(), 1)


@torch.no_grad()
def note_agreement(
    logits: Tensor,
    foreground: Tensor,
    known: Tensor,
    guidance: GuidanceInView,
    suffix: str = "",
) -> None:
    """Leave for the log in how many known cells student and teacher agree, and how few are known.

    Without a RoI both are NaN, which the log leaves out.
    """
    agree = ((logits > 0) == foreground) & known
    guidance.note(f"pseudo_mask_agreement{suffix}", agree.sum() / known.sum())
    guidance.note(f"pseudo_mask_unknown{suffix}", 1 - known.float().mean())
