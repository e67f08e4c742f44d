"""Cascade R-CNN under Soft Teacher: every stage is judged by a stage of the teacher and learns.

Shape shorthand: N images, R_i boxes of image i, R boxes of all images, K classes (class K is the
background). The choices made here are defined in docs/cascade.md.
"""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import Boxes, Instances
from torch import Tensor

from soft_teacher.modeling.background_evidence import gather_evidence
from soft_teacher.modeling.cascade_sampling import sample_of_next_stage
from soft_teacher.modeling.guidance import GuidanceInView
from soft_teacher.modeling.roi_heads import SoftTeacherROIMixin
from soft_teacher.modeling.roi_sampling import UnlabeledSample
from soft_teacher.modeling.score_average import average_scores


class SoftTeacherCascadeMixin(SoftTeacherROIMixin):
    """Adds to a Detectron2 cascade what Soft Teacher asks of it.

    It builds on the parts of `CascadeROIHeads`: `num_cascade_stages`, `box_predictor` and
    `proposal_matchers` by stage, and `_run_stage`. Box regression does not depend on the class.

    Attributes:
        score_average: of `average_scores`, how stages make one score in inference.
    """

    score_average: str = "probabilities"

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Arguments of the constructor, read from the config.

        Raises:
            ValueError: a key has a value that is not among its choices, or excludes a cascade.
        """
        if not cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
            raise ValueError(
                f"MODEL.ROI_HEADS.NAME is {cfg.MODEL.ROI_HEADS.NAME}, whose stages hand boxes on "
                "without a class; set MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG to True."
            )
        return super().from_config(cfg, input_shape)

    def _judging_stage(self, stage: int) -> int | None:
        """Which stage of the teacher judges boxes of this stage of the student; None is all."""
        return stage if self.soft_teacher.judge == "stage" else None

    @property
    def first_stage(self) -> int | None:
        return self._judging_stage(0)

    @torch.no_grad()
    def score_and_refine(
        self,
        features: dict[str, Tensor],
        image_sizes: list[tuple[int, int]],
        score_boxes: list[Tensor],
        refine_boxes: list[Tensor],
        refine_classes: list[Tensor],
        stage: int | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See the parent.

        Args:
            stage: the stage that scores `score_boxes`, where they are. None: all stages do, each
                where the stage before it moved them, and the scores are averaged as in inference.
                `refine_boxes` always go through all stages.
        """
        assert not self.training
        nothing = [x[:0] for x in score_boxes]
        moved_with_scores = score_boxes if stage is None else nothing
        moving = _join(moved_with_scores, refine_boxes)
        refines = any(len(x) for x in refine_boxes)
        scored = []
        for k in range(self.num_cascade_stages):
            scores = stage in (None, k)
            if not scores and not refines:
                continue
            fixed = score_boxes if stage == k else nothing
            logits, deltas = self._predict_at_stage(k, features, _join(fixed, moving), image_sizes)
            num_boxes = [len(f) + len(m) for f, m in zip(fixed, moving, strict=True)]
            if scores:
                scored.append(_first_rows(logits, num_boxes, score_boxes))
            moving = [
                self._move(k, m, d[len(f) :], size).tensor
                for m, d, f, size in zip(
                    moving, deltas.split(num_boxes), fixed, image_sizes, strict=True
                )
            ]
        refined = [x[len(y) :] for x, y in zip(moving, moved_with_scores, strict=True)]
        probabilities = [average_scores(x, self.score_average) for x in zip(*scored, strict=True)]
        return probabilities, refined

    def _predict_at_stage(
        self,
        stage: int,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> tuple[Tensor, Tensor]:
        """Class logits (R, K+1) and box deltas (R, 4), float32, of boxes in N images."""
        # In float, so that ROIAlign does not round the boxes to half precision.
        levels = [features[f].float() for f in self.box_in_features]
        proposals = [
            Instances(size, proposal_boxes=Boxes(x))
            for x, size in zip(boxes, image_sizes, strict=True)
        ]
        logits, deltas = self._run_stage(levels, proposals, stage)
        return logits.float(), deltas.float()

    def _move(
        self, stage: int, boxes: Tensor, deltas: Tensor, image_size: tuple[int, int]
    ) -> Boxes:
        """Boxes (R_i, 4) as a stage refines them, clipped to the image, without gradient."""
        transform = self.box_predictor[stage].box2box_transform
        moved = transform.apply_deltas(deltas.detach(), boxes)
        _check_finite(moved)
        moved = Boxes(moved)
        moved.clip(image_size)
        return moved

    def _create_proposals_from_boxes(
        self, boxes: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> list[Instances]:
        # Detectron2's asserts that boxes are finite. In training this is no bug but divergence.
        for x in boxes:
            _check_finite(x)
        return super()._create_proposals_from_boxes(boxes, image_sizes)

    def _losses_on_samples(
        self,
        features: dict[str, Tensor],
        samples: list[UnlabeledSample],
        evidence: dict[str, Tensor],
        guidance: GuidanceInView,
    ) -> dict[str, Tensor]:
        image_sizes = [x.image_size for x in guidance.targets]
        losses, deltas = {}, None
        for stage in range(self.num_cascade_stages):
            if stage > 0:
                samples = self._next_samples(stage, samples, deltas, guidance)
                evidence = gather_evidence(
                    self._indicator_needs,
                    [s.boxes[: s.num_sampled] for s in samples],
                    [s.classes for s in samples],
                    self.num_classes,
                    guidance,
                    self._judging_stage(stage),
                )
            boxes = [s.boxes for s in samples]
            logits, deltas = self._predict_at_stage(stage, features, boxes, image_sizes)
            predictor = self.box_predictor[stage]
            found = self._stage_losses(predictor, (logits, deltas), samples, evidence)
            losses.update(self._note(found, guidance, f"_stage{stage}"))
        return losses

    def _next_samples(
        self,
        stage: int,
        samples: list[UnlabeledSample],
        deltas: Tensor,
        guidance: GuidanceInView,
    ) -> list[UnlabeledSample]:
        """The RoIs of a stage, from those (R, 4) of the stage before it and their deltas."""
        return [
            sample_of_next_stage(
                sample,
                self._move(stage - 1, sample.boxes, d, targets.image_size),
                targets,
                cls,
                reg,
                self.proposal_matchers[stage],
                self.num_classes,
            )
            for sample, d, targets, cls, reg in zip(
                samples,
                deltas.split([len(s.boxes) for s in samples]),
                guidance.targets,
                guidance.teaches_cls,
                guidance.teaches_reg,
                strict=True,
            )
        ]


def _join(first: list[Tensor], second: list[Tensor]) -> list[Tensor]:
    """In each image the boxes of one list, then those of the other."""
    return [torch.cat(pair) for pair in zip(first, second, strict=True)]


def _first_rows(logits: Tensor, num_boxes: list[int], scored: list[Tensor]) -> list[Tensor]:
    """Class logits (R_i, K+1) of the first boxes of each image, those that are scored."""
    return [x[: len(s)] for x, s in zip(logits.split(num_boxes), scored, strict=True)]


def _check_finite(boxes: Tensor) -> None:
    """Raise what the training step takes as a reason to skip, as Detectron2's RPN does."""
    if not torch.isfinite(boxes).all():
        raise FloatingPointError("A stage of the cascade predicted boxes that are not finite.")


@ROI_HEADS_REGISTRY.register()
class SoftTeacherCascadeROIHeads(SoftTeacherCascadeMixin, CascadeROIHeads):
    """The heads of Cascade R-CNN under Soft Teacher; parameters are those of the parent."""
