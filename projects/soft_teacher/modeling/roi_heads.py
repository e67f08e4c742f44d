"""RoI heads that judge boxes as a teacher and learn from pseudo boxes as a student.

Shape shorthand: N images, R_i boxes of image i, R boxes of all images, K classes (class K is the
background).
"""

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

from soft_teacher.modeling.background_evidence import gather_evidence
from soft_teacher.modeling.guidance import GuidanceInView
from soft_teacher.modeling.mask_losses import PseudoMaskMixin
from soft_teacher.modeling.masked_rows import rows_where
from soft_teacher.modeling.reliability import INDICATORS
from soft_teacher.modeling.roi_losses import RoILosses, unlabeled_roi_losses
from soft_teacher.modeling.roi_sampling import (
    Match,
    UnlabeledSample,
    foreground,
    join_matches,
)
from soft_teacher.modeling.roi_settings import ROISettings
from soft_teacher.modeling.soft_nms import SoftNmsMixin
from soft_teacher.modeling.view_geometry import clip_boxes


class SoftTeacherROIMixin(SoftNmsMixin, PseudoMaskMixin):
    """Adds to a Detectron2 RoI head what Soft Teacher asks of it.

    As a teacher: :meth:`score_and_refine` given boxes. As a student: the losses on unlabeled
    images, :meth:`unlabeled_losses`. A head says how it judges in :meth:`score_and_refine` and
    how it learns from sampled RoIs in :meth:`_losses_on_samples`; which RoIs these are, and what
    one stage loses on them, is common.

    Attributes:
        first_stage: the stage of the teacher that judges proposals; None is the whole teacher.
    """

    first_stage: int | None = None

    @configurable
    def __init__(self, *, soft_teacher: ROISettings, **kwargs):
        """
        Args:
            soft_teacher: how it teaches and learns.
            kwargs: those of Detectron2's head.
        """
        super().__init__(**kwargs)
        self.soft_teacher = soft_teacher
        self._check_mask_head()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        """Arguments of the constructor, read from the config.

        Raises:
            ValueError: a key has a value that is not among its choices, or excludes another.
        """
        args = super().from_config(cfg, input_shape)
        return {**args, "soft_teacher": ROISettings.from_config(cfg)}

    def score_and_refine(
        self,
        features: dict[str, Tensor],
        image_sizes: list[tuple[int, int]],
        score_boxes: list[Tensor],
        refine_boxes: list[Tensor],
        refine_classes: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Judge boxes with as few passes as possible (p_T of eq. 6, refine() of eq. 7).

        Args:
            features: feature maps of N images.
            image_sizes: N (height, width), to which refined boxes are clipped.
            score_boxes: N tensors (R_i, 4), boxes whose class probabilities are asked.
            refine_boxes: N tensors (R_i', 4), boxes to refine.
            refine_classes: N int64 tensors (R_i',), the class whose regression refines them.

        Returns:
            N tensors (R_i, K+1) of probabilities, background last; N tensors (R_i', 4).
        """
        raise NotImplementedError

    def _losses_on_samples(
        self,
        features: dict[str, Tensor],
        samples: list[UnlabeledSample],
        evidence: dict[str, Tensor],
        guidance: GuidanceInView,
    ) -> dict[str, Tensor]:
        """The losses by name, from one pass over the RoIs of all images.

        Args:
            features: the student's feature maps of N strong views.
            samples: N samples of proposals.
            evidence: what the indicator needs to know of the RoIs sampled for classification.
            guidance: bound to the strong views; :meth:`_note` is to be told what the losses are
                divided by.
        """
        raise NotImplementedError

    def unlabeled_losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        guidance: GuidanceInView,
    ) -> dict[str, Tensor]:
        """Classification, regression and mask loss of the unlabeled images (eq. 3, 4, 10).

        Args:
            features: the student's feature maps of N strong views.
            proposals: the student's proposals, N `Instances` with `proposal_boxes`.
            guidance: pseudo labels and the teacher, bound to the strong views; its normalizers
                are filled in.

        Returns:
            "loss_cls" and "loss_box_reg", of a cascade for each stage, and "loss_mask" if the head
            has masks; 0-d.
        """
        pools = [
            self._pool(p.proposal_boxes.tensor, t)
            for p, t in zip(proposals, guidance.targets, strict=True)
        ]
        cls_matches = self._match(pools, guidance.targets, guidance.teaches_cls)
        evidence = gather_evidence(
            self._indicator_needs,
            [pool[m.rows] for pool, m in zip(pools, cls_matches, strict=True)],
            [m.classes for m in cls_matches],
            self.num_classes,
            guidance,
            self.first_stage,
        )
        reg_matches = self._match(pools, guidance.targets, guidance.teaches_reg)
        samples = join_matches(
            pools, cls_matches, foreground(reg_matches, self.num_classes), guidance.targets
        )
        guidance.note_pseudo_labels()
        losses = self._losses_on_samples(features, samples, evidence, guidance)
        losses.update(self.unlabeled_mask_losses(features, pools, cls_matches, guidance))
        return losses

    def _pool(self, boxes: Tensor, targets: Instances) -> Tensor:
        """Candidate RoIs (P, 4) of an image: given ones, and pseudo boxes if the head wants."""
        if not self.proposal_append_gt:
            return boxes
        return torch.cat([boxes, targets.gt_boxes.tensor])

    @torch.no_grad()
    def _match(
        self,
        pools: list[Tensor],
        targets: list[Instances],
        chosen: list[Tensor],
        matcher: Matcher | None = None,
        candidates: list[Tensor] | None = None,
    ) -> list[Match]:
        """Match each pool with the chosen targets and sample it as Detectron2 does.

        Pseudo boxes that are not chosen are no candidates either: the pool of each match is
        the proposals and the pseudo boxes of that match.

        Args:
            pools: N tensors (P_i, 4), see :meth:`_pool`.
            targets: N `Instances`, R_i pseudo boxes each.
            chosen: N masks (R_i,).
            matcher: of a stage; None is that of the head.
            candidates: N masks (P_i,) of the boxes that may be sampled; None for all.
        """
        matcher = matcher or self.proposal_matcher
        matches = []
        for i, (pool, target, mask, indices) in enumerate(
            zip(pools, targets, chosen, rows_where(chosen), strict=True)
        ):
            matched, labels = matcher(pairwise_iou(target.gt_boxes[indices], Boxes(pool)))
            labels = labels.clone() if candidates is None else labels.where(candidates[i], -1)
            if self.proposal_append_gt:
                labels[len(pool) - len(target) :][~mask] = -1
            rows, classes = self._sample_with_ignored(matched, labels, target.gt_classes[indices])
            partner = indices[matched[rows]] if len(indices) else matched[rows]
            matches.append(Match(rows, classes, partner, candidates=labels != -1))
        return matches

    def _sample_with_ignored(
        self, matched: Tensor, labels: Tensor, classes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Detectron2's sampling, which forgets ignored boxes where there is no target."""
        if len(classes) > 0:
            return self._sample_proposals(matched, labels, classes)
        candidates = (labels != -1).nonzero().squeeze(1)
        rows, classes = self._sample_proposals(matched[candidates], labels[candidates], classes)
        return candidates[rows], classes

    @property
    def _indicator_needs(self) -> tuple[str, ...]:
        name = self.soft_teacher.reliability
        return () if name == "none" else INDICATORS[name].needs

    def _stage_losses(
        self,
        predictor: FastRCNNOutputLayers,
        predictions: tuple[Tensor, Tensor],
        samples: list[UnlabeledSample],
        evidence: dict[str, Tensor],
    ) -> RoILosses:
        """The losses of one stage by its predictions, logits (R, K+1) and deltas (R, 4K or 4)."""
        settings = self.soft_teacher
        return unlabeled_roi_losses(
            *predictions,
            samples,
            evidence,
            predictor,
            num_classes=self.num_classes,
            reliability=settings.reliability,
            cls_normalizer=settings.cls_normalizer,
            reg_normalizer=settings.reg_normalizer,
        )

    @staticmethod
    def _note(found: RoILosses, guidance: GuidanceInView, suffix: str = "") -> dict[str, Tensor]:
        """The losses by their names, with what belongs to them left in the guidance."""
        guidance.note(f"background_weight{suffix}", found.background_weight)
        guidance.normalizers.update({f"{k}{suffix}": v for k, v in found.normalizers.items()})
        return {f"{k}{suffix}": v for k, v in found.losses.items()}


@ROI_HEADS_REGISTRY.register()
class SoftTeacherROIHeads(SoftTeacherROIMixin, StandardROIHeads):
    """The heads of Faster R-CNN under Soft Teacher; parameters are those of the parent."""

    @torch.no_grad()
    def score_and_refine(
        self,
        features: dict[str, Tensor],
        image_sizes: list[tuple[int, int]],
        score_boxes: list[Tensor],
        refine_boxes: list[Tensor],
        refine_classes: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        assert not self.training
        num_scored = [len(x) for x in score_boxes]
        num_boxes = [len(s) + len(r) for s, r in zip(score_boxes, refine_boxes, strict=True)]
        boxes = [torch.cat(pair) for pair in zip(score_boxes, refine_boxes, strict=True)]
        logits, deltas = self._predict_given_boxes(features, boxes)
        probabilities = [
            F.softmax(x[:n], dim=1)
            for x, n in zip(logits.split(num_boxes), num_scored, strict=True)
        ]
        refined = [
            self._refine(b, d[n:], c, size)
            for b, d, n, c, size in zip(
                refine_boxes,
                deltas.split(num_boxes),
                num_scored,
                refine_classes,
                image_sizes,
                strict=True,
            )
        ]
        return probabilities, refined

    def _refine(
        self, boxes: Tensor, deltas: Tensor, classes: Tensor, image_size: tuple[int, int]
    ) -> Tensor:
        """Apply to each box (R_i, 4) the deltas of its own class, and clip to the image."""
        if deltas.shape[1] > 4:
            rows = torch.arange(len(boxes), device=boxes.device)
            deltas = deltas.view(len(boxes), deltas.shape[1] // 4, 4)[rows, classes]
        refined = self.box_predictor.box2box_transform.apply_deltas(deltas, boxes)
        return clip_boxes(refined, image_size)

    def _predict_given_boxes(
        self, features: dict[str, Tensor], boxes: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Class logits (R, K+1) and box deltas (R, 4K or 4), float32, of boxes in N images."""
        # ROIAlign rounds boxes to the type of the features. In half precision that moves them by
        # more than the jitter whose effect is to be measured.
        levels = [features[f].float() for f in self.box_in_features]
        pooled = self.box_pooler(levels, [Boxes(x) for x in boxes])
        logits, deltas = self.box_predictor(self.box_head(pooled))
        return logits.float(), deltas.float()

    def _losses_on_samples(
        self,
        features: dict[str, Tensor],
        samples: list[UnlabeledSample],
        evidence: dict[str, Tensor],
        guidance: GuidanceInView,
    ) -> dict[str, Tensor]:
        predictions = self._predict_given_boxes(features, [s.boxes for s in samples])
        found = self._stage_losses(self.box_predictor, predictions, samples, evidence)
        return self._note(found, guidance)
