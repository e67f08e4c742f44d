"""RoI heads that judge boxes as a teacher and learn from pseudo boxes as a student.

Shape shorthand: N images, R_i boxes of image i, R boxes of all images, K classes (class K is the
background).
"""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

from soft_teacher.modeling.background_evidence import gather_evidence
from soft_teacher.modeling.background_weighting import (
    CLS_NORMALIZERS,
    REG_NORMALIZERS,
    box_regression_loss,
    loss_normalizers,
    soft_classification_loss,
)
from soft_teacher.modeling.guidance import GuidanceInView, check_choice
from soft_teacher.modeling.reliability import INDICATORS
from soft_teacher.modeling.roi_sampling import Match, UnlabeledSample, join_matches


class SoftTeacherROIMixin:
    """Adds to a Detectron2 RoI head what Soft Teacher asks of it.

    As a teacher: :meth:`score_and_refine` given boxes. As a student: the losses on unlabeled
    images, :meth:`unlabeled_losses`. A head says how it predicts given boxes in
    :meth:`_predict_given_boxes` and which output layers do so in `_box_predictor`; the rest is
    common.
    """

    def _init_soft_teacher(
        self, reliability: str, cls_normalizer: str, reg_normalizer: str
    ) -> None:
        self.reliability = reliability
        self.cls_normalizer = cls_normalizer
        self.reg_normalizer = reg_normalizer

    @staticmethod
    def soft_teacher_args(cfg: CfgNode) -> dict[str, str]:
        """Arguments of this mixin from a config.

        Raises:
            ValueError: a key has a value that is not among its choices, or excludes another.
        """
        st = cfg.SOFT_TEACHER
        choices = (*INDICATORS, "none")
        check_choice("SOFT_TEACHER.BACKGROUND.RELIABILITY", st.BACKGROUND.RELIABILITY, choices)
        check_choice(
            "SOFT_TEACHER.BACKGROUND.NORMALIZER", st.BACKGROUND.NORMALIZER, CLS_NORMALIZERS
        )
        check_choice(
            "SOFT_TEACHER.REGRESSION.NORMALIZER", st.REGRESSION.NORMALIZER, REG_NORMALIZERS
        )
        if cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE:
            raise ValueError(
                "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE has no background probability, which weights "
                "the unlabeled background; set it to False."
            )
        return {
            "reliability": st.BACKGROUND.RELIABILITY,
            "cls_normalizer": st.BACKGROUND.NORMALIZER,
            "reg_normalizer": st.REGRESSION.NORMALIZER,
        }

    def _predict_given_boxes(
        self, features: dict[str, Tensor], boxes: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Class logits (R, K+1) and box deltas (R, 4K or 4), float32, of boxes in N images."""
        raise NotImplementedError

    @torch.no_grad()
    def score_and_refine(
        self,
        features: dict[str, Tensor],
        image_sizes: list[tuple[int, int]],
        score_boxes: list[Tensor],
        refine_boxes: list[Tensor],
        refine_classes: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Judge boxes in one pass through the head (p_T of eq. 6, refine() of eq. 7).

        Args:
            features: feature maps of N images.
            image_sizes: N (height, width), to which refined boxes are clipped.
            score_boxes: N tensors (R_i, 4), boxes whose class probabilities are asked.
            refine_boxes: N tensors (R_i', 4), boxes to refine.
            refine_classes: N int64 tensors (R_i',), the class whose regression refines them.

        Returns:
            N tensors (R_i, K+1) of probabilities, background last; N tensors (R_i', 4).
        """
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
        refined = Boxes(self._box_predictor.box2box_transform.apply_deltas(deltas, boxes))
        refined.clip(image_size)
        return refined.tensor

    def unlabeled_losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        guidance: GuidanceInView,
    ) -> dict[str, Tensor]:
        """Classification and regression loss of the unlabeled images (eq. 3, 4, 10).

        Args:
            features: the student's feature maps of N strong views.
            proposals: the student's proposals, N `Instances` with `proposal_boxes`.
            guidance: pseudo labels and the teacher, bound to the strong views; its normalizers
                are filled in.

        Returns:
            "loss_cls" and "loss_box_reg", 0-d.
        """
        pools = [self._pool(p, t) for p, t in zip(proposals, guidance.targets, strict=True)]
        cls_matches = self._match(pools, guidance.targets, guidance.teaches_cls)
        evidence = gather_evidence(
            self._indicator_needs, pools, cls_matches, self.num_classes, guidance
        )
        reg_matches = self._match(pools, guidance.targets, guidance.teaches_reg)
        samples = [
            join_matches(pool, cls, reg.foreground(self.num_classes), targets.gt_boxes.tensor)
            for pool, cls, reg, targets in zip(
                pools, cls_matches, reg_matches, guidance.targets, strict=True
            )
        ]
        guidance.note_pseudo_labels()
        return self._losses_on_samples(features, samples, evidence, guidance)

    def _pool(self, proposals: Instances, targets: Instances) -> Tensor:
        """Candidate RoIs (P, 4) of an image: proposals, and pseudo boxes if the head wants."""
        boxes = proposals.proposal_boxes.tensor
        if not self.proposal_append_gt:
            return boxes
        return torch.cat([boxes, targets.gt_boxes.tensor])

    @torch.no_grad()
    def _match(
        self, pools: list[Tensor], targets: list[Instances], chosen: list[Tensor]
    ) -> list[Match]:
        """Match each pool with the chosen targets and sample it as Detectron2 does.

        Pseudo boxes that are not chosen are no candidates either: the pool of each match is
        the proposals and the pseudo boxes of that match.
        """
        matches = []
        for pool, target, mask in zip(pools, targets, chosen, strict=True):
            indices = mask.nonzero().squeeze(1)
            matched, labels = self.proposal_matcher(
                pairwise_iou(target.gt_boxes[indices], Boxes(pool))
            )
            labels = labels.clone()
            if self.proposal_append_gt:
                labels[len(pool) - len(target) :][~mask] = -1
            rows, classes = self._sample_with_ignored(matched, labels, target.gt_classes[indices])
            partner = indices[matched[rows]] if len(indices) else matched[rows]
            matches.append(Match(rows, classes, partner))
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
        return () if self.reliability == "none" else INDICATORS[self.reliability].needs

    @torch.no_grad()
    def _reliability(
        self, logits: Tensor, is_background: Tensor, evidence: dict[str, Tensor]
    ) -> Tensor:
        """r_j of eq. 5 for the RoIs sampled for classification (R,); foreground holds 1.

        Args:
            logits: (R, K+1), the student's.
            is_background: bool (R,).
            evidence: see :func:`gather_evidence`.
        """
        ones = logits.new_ones(len(logits))
        if self.reliability == "none":
            return ones
        known = {**evidence, "student": F.softmax(logits, dim=1)[:, -1]}
        indicator = INDICATORS[self.reliability]
        weights = indicator.reliability(*(known[x] for x in indicator.needs))
        return torch.where(is_background, weights.to(logits.dtype), ones)

    def _losses_on_samples(
        self,
        features: dict[str, Tensor],
        samples: list[UnlabeledSample],
        evidence: dict[str, Tensor],
        guidance: GuidanceInView,
    ) -> dict[str, Tensor]:
        """Both losses from one pass over the RoIs of all images."""
        logits, deltas = self._predict_given_boxes(features, [s.boxes for s in samples])
        num_rois = [len(s.boxes) for s in samples]
        classes = torch.cat([s.classes for s in samples])
        sampled_logits = torch.cat(
            [x[: s.num_sampled] for x, s in zip(logits.split(num_rois), samples, strict=True)]
        )
        image_index = torch.repeat_interleave(
            torch.arange(len(samples), device=classes.device),
            torch.tensor([s.num_sampled for s in samples], device=classes.device),
            output_size=len(classes),
        )
        is_background = classes == self.num_classes
        reliability = self._reliability(sampled_logits, is_background, evidence)
        self._note_weights(reliability, is_background, len(samples), guidance)
        loss_cls = soft_classification_loss(
            F.cross_entropy(sampled_logits, classes, reduction="none"),
            is_background,
            reliability,
            image_index,
            len(samples),
            self.cls_normalizer,
        )
        sums = [
            self._regression_loss_sum(s, d)
            for s, d in zip(samples, deltas.split(num_rois), strict=True)
        ]
        loss_box_reg = box_regression_loss(
            torch.stack(sums),
            torch.tensor([len(s.reg_rows) for s in samples], device=classes.device),
            len(classes),
            self.reg_normalizer,
        )
        weight = self._box_predictor.loss_weight
        return {
            "loss_cls": loss_cls * weight.get("loss_cls", 1.0),
            "loss_box_reg": loss_box_reg * weight.get("loss_box_reg", 1.0),
        }

    def _note_weights(
        self,
        reliability: Tensor,
        is_background: Tensor,
        num_images: int,
        guidance: GuidanceInView,
    ) -> None:
        """Leave the mean background weight for the log, and what the losses are divided by."""
        background = is_background.to(reliability.dtype)
        mean = (reliability * background).sum() / background.sum().clamp(min=1.0)
        guidance.note("background_weight", mean)
        guidance.normalizers.update(
            loss_normalizers(reliability, num_images, self.cls_normalizer, self.reg_normalizer)
        )

    def _regression_loss_sum(self, sample: UnlabeledSample, deltas: Tensor) -> Tensor:
        """Sum of l_reg over the F foreground RoIs of an image; Detectron2's returns the mean."""
        mean = self._box_predictor.box_reg_loss(
            sample.boxes[sample.reg_rows],
            sample.reg_boxes,
            deltas[sample.reg_rows],
            sample.reg_classes,
        )
        return mean * len(sample.reg_rows)


@ROI_HEADS_REGISTRY.register()
class SoftTeacherROIHeads(SoftTeacherROIMixin, StandardROIHeads):
    """The heads of Faster R-CNN under Soft Teacher; parameters are those of the parent."""

    @configurable
    def __init__(self, *, reliability: str, cls_normalizer: str, reg_normalizer: str, **kwargs):
        super().__init__(**kwargs)
        self._init_soft_teacher(reliability, cls_normalizer, reg_normalizer)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape) -> dict:
        return {**super().from_config(cfg, input_shape), **cls.soft_teacher_args(cfg)}

    @property
    def _box_predictor(self):
        return self.box_predictor

    def _predict_given_boxes(
        self, features: dict[str, Tensor], boxes: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        # ROIAlign rounds boxes to the type of the features. In half precision that moves them by
        # more than the jitter whose effect is to be measured.
        levels = [features[f].float() for f in self.box_in_features]
        pooled = self.box_pooler(levels, [Boxes(x) for x in boxes])
        logits, deltas = self.box_predictor(self.box_head(pooled))
        return logits.float(), deltas.float()
