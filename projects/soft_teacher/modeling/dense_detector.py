"""Soft Teacher for Detectron2's dense detectors, RetinaNet and FCOS.

Shape shorthand: N images, L levels, R anchors of an image (all levels), K classes; per level,
predictions are (N, R_l, ...) in Detectron2's order of anchors.
"""

from collections.abc import Sequence

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor

from soft_teacher.modeling import pseudo_labels
from soft_teacher.modeling.dense_correspondence import Pyramid
from soft_teacher.modeling.dense_guidance import DenseGuidance, DensePredictions
from soft_teacher.modeling.dense_settings import DenseSettings
from soft_teacher.modeling.dense_weighting import (
    anchor_weights,
    foreground_mask,
    weighted_focal_loss,
)
from soft_teacher.modeling.fixed_labels import fixed_guidance
from soft_teacher.modeling.guidance import Guidance, GuidanceInView


class SoftTeacherDenseMixin:
    """Adds the teacher's and the student's part in Soft Teacher to a `DenseDetector`.

    The trainer knows two calls: `teacher.annotate(weak)` and `student(labeled, strong,
    guidance)`. Without guidance, and in inference, the detector is Detectron2's, whose parameter
    names it keeps. A detector names its classification loss and says what its head predicts
    (`_prediction_dims`), how it scores detections and how it learns places; the rest is common.

    Attributes:
        soft_teacher: the settings, which the constructor of the detector sets.
    """

    soft_teacher: DenseSettings
    _cls_loss_name: str

    @property
    def _prediction_dims(self) -> list[int]:
        """Numbers per anchor of each output of the head: class logits, box deltas, others."""
        raise NotImplementedError

    def _detection_scores(
        self, probabilities: list[Tensor], others: Sequence[list[Tensor]]
    ) -> list[Tensor]:
        """What NMS and thresholds go by, L tensors (N, R_l, K), from the class probabilities and
        the head's further outputs."""
        raise NotImplementedError

    def _localization_losses(
        self,
        anchors: list[Boxes],
        deltas: list[Tensor],
        others: Sequence[list[Tensor]],
        boxes: list[Tensor],
        positive: Tensor,
    ) -> dict[str, Tensor]:
        """The losses other than classification, as sums over positive anchors.

        Args:
            anchors: L levels.
            deltas: L tensors (N, R_l, 4).
            others: the head's further outputs, alike.
            boxes: N tensors (R, 4), the box that each anchor is matched with.
            positive: bool (N, R).
        """
        raise NotImplementedError

    @torch.no_grad()
    def annotate(self, weak: list[dict]) -> Guidance:
        """As the teacher: detect objects on weak views, and remember what was predicted where.

        Args:
            weak: N views, see `soft_teacher.data`.

        Returns:
            Guidance that keeps the dense predictions of this call until it is dropped.

        Raises:
            FloatingPointError: predicted boxes are not finite.
        """
        assert not self.training, "The teacher must be in eval mode."
        settings = self.soft_teacher
        if settings.fixed_labels:
            return fixed_guidance(weak, settings.rules, self.device)
        images = self.preprocess_image(weak)
        features, (logits, deltas, *others) = self._predict(images.tensor)
        probabilities = [x.float().sigmoid() for x in logits]
        candidates = self._candidates(
            self.anchor_generator(features),
            self._detection_scores(probabilities, others),
            deltas,
            images.image_sizes,
        )
        detections = [self._suppress(x) for x in candidates]
        for instances in (*candidates, *detections):
            instances.pred_boxes.clip(instances.image_size)
        num_anchors = self.anchor_generator.num_anchors[0]
        foreground = [x.amax(dim=-1).unflatten(1, (-1, num_anchors)) for x in probabilities]
        predictions = DensePredictions(
            torch.cat(foreground, dim=1), self._pyramid(features), candidates
        )
        matrices = [x["matrix"] for x in weak]
        return DenseGuidance(
            detections, matrices, predictions, settings.rules, settings.spread_rules
        )

    def forward(
        self,
        batched_inputs: list[dict],
        strong: list[dict] | None = None,
        guidance: Guidance | None = None,
    ) -> dict[str, Tensor] | list[dict]:
        """As the student: L = L_s + alpha L_u (eq. 1), as a dict of weighted losses.

        Args:
            batched_inputs: labeled views with `instances`, or, in eval mode, images to detect in.
            strong: N strong views of unlabeled images.
            guidance: what the teacher said of their weak views; None for L_s alone. Its statistics
                and normalizers are filled in.

        Returns:
            The losses of Detectron2's detector, and the same with the suffix "_unsup" for the
            unlabeled images; or detections, in eval mode.
        """
        outputs = super().forward(batched_inputs)
        if not self.training or guidance is None:
            return outputs
        in_view = guidance.seen_from(strong)
        # As many positive anchors as the labeled images have, for as many images.
        expected = self.loss_normalizer * len(strong) / len(batched_inputs)
        unsup = self._unlabeled_losses(strong, in_view, expected)
        alpha = self.soft_teacher.unsup_loss_weight
        outputs.update({f"{k}_unsup": alpha * v for k, v in unsup.items()})
        guidance.normalizers = {f"{k}_unsup": v for k, v in in_view.normalizers.items()}
        return outputs

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        *others: list[Tensor],
    ) -> dict[str, Tensor]:
        """Detectron2's losses of labeled images.

        Raises:
            FloatingPointError: predicted boxes are not finite, at which some of Detectron2's box
                losses fail an assertion; the training step skips the batch for this one.
        """
        require_finite(pred_anchor_deltas)
        return super().losses(anchors, pred_logits, gt_labels, pred_anchor_deltas, *others)

    def _predict(self, images: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Feature maps of L levels, and the head's outputs by anchor, each a list of L levels."""
        maps = self.backbone(images)
        features = [maps[name] for name in self.head_in_features]
        outputs = self.head(features)
        return features, self._transpose_dense_predictions(outputs, self._prediction_dims)

    def _transpose_dense_predictions(
        self, predictions: list[list[Tensor]], dims_per_anchor: list[int]
    ) -> list[list[Tensor]]:
        """Detectron2's outputs by anchor, with the deltas in float32.

        Under autocast they are in half precision, in which FCOS's boxes would be decoded too:
        to whole pixels from 1,024 on, with areas beyond the range, and its loss refuses them.
        """
        logits, deltas, *others = super()._transpose_dense_predictions(predictions, dims_per_anchor)
        return [logits, [x.float() for x in deltas], *others]

    def _pyramid(self, features: list[Tensor]) -> Pyramid:
        generator = self.anchor_generator
        return Pyramid([tuple(x.shape[-2:]) for x in features], generator.strides, generator.offset)

    def _candidates(
        self,
        anchors: list[Boxes],
        scores: list[Tensor],
        deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """The boxes of each image that Detectron2's inference lets compete in NMS."""
        require_finite(deltas)
        return [
            self._decode_multi_level_predictions(
                anchors,
                [x[i] for x in scores],
                [x[i] for x in deltas],
                self.test_score_thresh,
                self.test_topk_candidates,
                size,
            )
            for i, size in enumerate(image_sizes)
        ]

    def _suppress(self, candidates: Instances) -> Instances:
        """The end of Detectron2's `inference_single_image`, which does not hand out candidates."""
        keep = batched_nms(
            candidates.pred_boxes.tensor,
            candidates.scores,
            candidates.pred_classes,
            self.test_nms_thresh,
        )
        return candidates[keep[: self.max_detections_per_image]]

    def _unlabeled_losses(
        self, strong: list[dict], in_view: GuidanceInView, expected: float
    ) -> dict[str, Tensor]:
        """L_u of eq. 3: G_cls teaches classification, G_reg the rest, in one pass.

        Args:
            strong: N strong views.
            in_view: pseudo labels and the teacher, bound to them; its normalizers are filled in.
            expected: positive anchors that as many labeled images would have.
        """
        features, (logits, deltas, *others) = self._predict(self.preprocess_image(strong).tensor)
        anchors = self.anchor_generator(features)
        cls_targets = pseudo_labels.select(in_view.targets, in_view.teaches_cls)
        cls_labels = torch.stack(self.label_anchors(anchors, cls_targets)[0])
        reg_targets = pseudo_labels.select(in_view.targets, in_view.teaches_reg)
        reg_labels, reg_boxes = self.label_anchors(anchors, reg_targets)
        positive = foreground_mask(torch.stack(reg_labels), self.num_classes)
        in_view.note_pseudo_labels()

        require_finite(deltas)
        sums = {
            self._cls_loss_name: weighted_focal_loss(
                torch.cat(logits, dim=1),
                cls_labels,
                self._weights(cls_labels, features, in_view),
                self.focal_loss_alpha,
                self.focal_loss_gamma,
            ),
            **self._localization_losses(anchors, deltas, others, reg_boxes, positive),
        }
        for_cls, for_reg = self._unsup_normalizers(cls_labels, positive, expected)
        numbers = {k: for_cls if k == self._cls_loss_name else for_reg for k in sums}
        in_view.normalizers.update({k: sums[k].new_full((), n) for k, n in numbers.items()})
        return {k: v / numbers[k] for k, v in sums.items()}

    def _weights(self, labels: Tensor, features: list[Tensor], in_view: GuidanceInView) -> Tensor:
        """Weights of the anchors in the classification loss, (N, R)."""
        if self.soft_teacher.reliability == "none":
            reliability = torch.ones(labels.shape, device=labels.device)
        else:
            reliability = in_view.background_reliability(self._pyramid(features))
        negative = labels == self.num_classes
        mean = (reliability * negative).sum() / negative.sum().clamp(min=1)
        in_view.note("background_weight", mean)
        return anchor_weights(labels, reliability, self.num_classes, self.soft_teacher.per_image)

    def _unsup_normalizers(
        self, cls_labels: Tensor, positive: Tensor, expected: float
    ) -> tuple[float, float]:
        """What classification and the other losses are divided by: moving averages of the numbers
        of positive anchors, apart from that of labeled images, and at least `expected`.

        A teacher that finds few objects or none would make them small, and with them the loss of
        all the negatives large, until the student finds none either.
        """
        in_cls = foreground_mask(cls_labels, self.num_classes)
        counts = torch.stack([in_cls.sum(), positive.sum()]).tolist()
        names = ("unsup_cls_normalizer", "unsup_reg_normalizer")
        averages = [
            self._ema_update(name, max(count, 1), expected)
            for name, count in zip(names, counts, strict=True)
        ]
        return max(averages[0], expected), max(averages[1], expected)


def require_finite(deltas: list[Tensor]) -> None:
    """Raise a FloatingPointError, as Detectron2's RPN does, if box deltas are not finite."""
    if not torch.isfinite(torch.stack([x.detach().float().sum() for x in deltas]).sum()):
        raise FloatingPointError("The detector predicts boxes that are not finite.")
