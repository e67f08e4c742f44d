"""HTC under Soft Teacher: every stage is judged, sampled anew and taught, boxes and masks.

Shape shorthand: N images, R_i boxes of image i, R boxes of all images, K classes (class K is the
background). The choices made here are defined in docs/htc.md.
"""

from dataclasses import replace

import torch
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import Tensor

from soft_teacher.modeling.background_evidence import gather_evidence
from soft_teacher.modeling.guidance import GuidanceInView
from soft_teacher.modeling.htc_roi_heads import HTCROIHeads
from soft_teacher.modeling.htc_sampling import (
    Entering,
    entering_first_stage,
    entering_next_stage,
)
from soft_teacher.modeling.roi_heads_cascade import SoftTeacherCascadeMixin
from soft_teacher.modeling.roi_sampling import (
    Match,
    UnlabeledSample,
    foreground,
    join_matches,
)


@ROI_HEADS_REGISTRY.register()
class SoftTeacherHTCROIHeads(SoftTeacherCascadeMixin, HTCROIHeads):
    """The heads of HTC, or of mmdetection's cascades, under Soft Teacher."""

    def _check_mask_head(self) -> None:
        """All of this head's mask heads are of the one kind that can learn."""

    def score_and_refine(
        self,
        features: dict[str, Tensor],
        *args,
        **kwargs,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See the parent."""
        with torch.no_grad():
            self._add_embedding(features)
        return super().score_and_refine(features, *args, **kwargs)

    def unlabeled_losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        guidance: GuidanceInView,
    ) -> dict[str, Tensor]:
        """See the parent; "loss_cls_stage0" and so on, and "loss_mask_stage0" with masks.

        The semantic branch lends its embedding and learns from no loss of its own.
        """
        self._add_embedding(features)
        image_sizes = [x.image_size for x in guidance.targets]
        entering, losses = entering_first_stage(proposals), {}
        for stage, weight in enumerate(self.htc_rules.loss_weights):
            pools, matches = self._sample_for_cls(stage, entering, guidance)
            # The teacher's answer settles which boxes teach regression.
            evidence = self._evidence(stage, pools, matches, guidance)
            samples = self._add_regression(stage, entering, pools, matches, guidance)
            if stage == 0:
                guidance.note_pseudo_labels()
            boxes = [x.boxes for x in samples]
            logits, deltas = self._predict_at_stage(stage, features, boxes, image_sizes)
            predictor = self.box_predictor[stage]
            found = self._stage_losses(predictor, (logits, deltas), samples, evidence)
            of_stage = self._note(found, guidance, f"_stage{stage}")
            entering = entering_next_stage(
                samples, self._move_all(stage, samples, deltas, guidance)
            )
            if self.mask_on and self.htc_rules.interleaved:
                pools, matches = self._sample_for_cls(stage, entering, guidance)
            of_stage.update(self.unlabeled_mask_losses(features, pools, matches, guidance, stage))
            losses.update({name: weight * x for name, x in of_stage.items()})
        return losses

    def _sample_for_cls(
        self, stage: int, entering: list[Entering], guidance: GuidanceInView
    ) -> tuple[list[Tensor], list[Match]]:
        """Pools of boxes with all pseudo boxes behind them, and samples matched with G_cls."""
        pools = [
            self._pool(x.boxes, targets)
            for x, targets in zip(entering, guidance.targets, strict=True)
        ]
        candidates = [
            torch.cat([x.for_cls, x.for_cls.new_ones(len(pool) - len(x.boxes))])
            for x, pool in zip(entering, pools, strict=True)
        ]
        matcher = self.proposal_matchers[stage]
        return pools, self._match(
            pools, guidance.targets, guidance.teaches_cls, matcher, candidates
        )

    def _evidence(
        self, stage: int, pools: list[Tensor], matches: list[Match], guidance: GuidanceInView
    ) -> dict[str, Tensor]:
        return gather_evidence(
            self._indicator_needs,
            [pool[x.rows] for pool, x in zip(pools, matches, strict=True)],
            [x.classes for x in matches],
            self.num_classes,
            guidance,
            self._judging_stage(stage),
        )

    def _add_regression(
        self,
        stage: int,
        entering: list[Entering],
        pools: list[Tensor],
        cls_matches: list[Match],
        guidance: GuidanceInView,
    ) -> list[UnlabeledSample]:
        """Samples for classification and behind them the foreground of G_reg that they lack.

        Their `reg_candidates` are the RoIs that are no pseudo boxes, which alone are handed on.
        """
        matches = self._match(
            pools, guidance.targets, guidance.teaches_reg, self.proposal_matchers[stage]
        )
        found = [
            replace(x, candidates=_is_below(len(boxes.boxes), x.candidates))
            for x, boxes in zip(foreground(matches, self.num_classes), entering, strict=True)
        ]
        return join_matches(pools, cls_matches, found, guidance.targets)

    def _move_all(
        self,
        stage: int,
        samples: list[UnlabeledSample],
        deltas: Tensor,
        guidance: GuidanceInView,
    ) -> list[Boxes]:
        """The RoIs of all images as a stage refined them by deltas (R, 4)."""
        return [
            self._move(stage, x.boxes, d, targets.image_size)
            for x, d, targets in zip(
                samples,
                deltas.split([len(x.boxes) for x in samples]),
                guidance.targets,
                strict=True,
            )
        ]

    def _predict_masks(
        self, features: dict[str, Tensor], boxes: list[Tensor], stage: int | None = None
    ) -> Tensor:
        levels = {name: features[name].float() for name in self.mask_in_features}
        pooled = self._pool_for_masks(levels, [Boxes(x) for x in boxes])
        return self._mask_logits(stage, pooled).float()


def _is_below(limit: int, like: Tensor) -> Tensor:
    """Mask, shaped like another (P,), of the rows below a number."""
    return torch.arange(len(like), device=like.device) < limit
