"""A Faster R-CNN that can be either of Soft Teacher's two models."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.utils.events import get_event_storage
from torch import Tensor

from soft_teacher.modeling import pseudo_labels
from soft_teacher.modeling.fixed_labels import fixed_guidance, labels_are_fixed
from soft_teacher.modeling.guidance import Guidance, GuidanceInView, PseudoLabelRules


@contextmanager
def _log_prefix(name: str) -> Iterator[None]:
    """Detectron2's name scope for scalars, left also by an exception: its own stays for good."""
    scope = get_event_storage().name_scope(name)
    scope.__enter__()
    try:
        yield
    finally:
        scope.__exit__(None, None, None)


@META_ARCH_REGISTRY.register()
class SoftTeacherRCNN(GeneralizedRCNN):
    """GeneralizedRCNN with the teacher's and the student's part in Soft Teacher.

    The trainer knows two calls: `teacher.annotate(weak)` and `student(labeled, strong,
    guidance)`. Without guidance, and in inference, this is GeneralizedRCNN, whose parameter
    names it keeps.
    """

    @configurable
    def __init__(
        self,
        *,
        unsup_loss_weight: float,
        rules: PseudoLabelRules,
        fixed_labels: bool = False,
        **kwargs,
    ):
        """
        Args:
            unsup_loss_weight: alpha of eq. 1.
            rules: which detections teach what.
            fixed_labels: whether the views carry pseudo labels, which then are the guidance.
        """
        super().__init__(**kwargs)
        self.unsup_loss_weight = unsup_loss_weight
        self.rules = rules
        self.fixed_labels = fixed_labels

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            **super().from_config(cfg),
            "unsup_loss_weight": cfg.SOFT_TEACHER.UNSUP_LOSS_WEIGHT,
            "rules": PseudoLabelRules.from_config(cfg),
            "fixed_labels": labels_are_fixed(cfg),
        }

    @torch.no_grad()
    def annotate(self, weak: list[dict]) -> Guidance:
        """As the teacher: detect objects on weak views and stand ready to judge boxes.

        Args:
            weak: N views, see `soft_teacher.data`.

        Returns:
            Guidance that keeps the feature maps of this call until it is dropped.
        """
        assert not self.training, "The teacher must be in eval mode."
        if self.fixed_labels:
            return fixed_guidance(weak, self.rules, self.device)
        images = self.preprocess_image(weak)
        features = self.backbone(images.tensor)
        proposals, _ = self.proposal_generator(images, features, None)
        detections, _ = self.roi_heads(images, features, proposals, None)

        def judge(score_boxes, refine_boxes, refine_classes, **stage):
            return self.roi_heads.score_and_refine(
                features, images.image_sizes, score_boxes, refine_boxes, refine_classes, **stage
            )

        return Guidance(detections, [x["matrix"] for x in weak], judge, self.rules)

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
            The losses of GeneralizedRCNN, and the same with the suffix "_unsup" for the
            unlabeled images; or detections, in eval mode.
        """
        outputs = super().forward(batched_inputs)
        if not self.training or guidance is None:
            return outputs
        in_view = guidance.seen_from(strong)
        with _log_prefix("unsup"):
            unsup = self._unlabeled_losses(strong, in_view)
        outputs.update({f"{k}_unsup": self.unsup_loss_weight * v for k, v in unsup.items()})
        guidance.normalizers = {f"{k}_unsup": v for k, v in in_view.normalizers.items()}
        return outputs

    def _unlabeled_losses(self, strong: list[dict], in_view: GuidanceInView) -> dict[str, Tensor]:
        """L_u of eq. 3 and 11, RPN losses included."""
        images = self.preprocess_image(strong)
        features = self.backbone(images.tensor)
        proposals, losses = self.proposal_generator(
            images, features, pseudo_labels.select(in_view.targets, in_view.teaches_rpn)
        )
        losses.update(self.roi_heads.unlabeled_losses(features, proposals, in_view))
        return losses
