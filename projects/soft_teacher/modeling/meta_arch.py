"""A Faster R-CNN that can be either of Soft Teacher's two models."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import ImageList
from detectron2.utils.events import get_event_storage
from torch import Tensor

from soft_teacher.modeling import pseudo_labels
from soft_teacher.modeling.fixed_labels import fixed_guidance, labels_are_fixed
from soft_teacher.modeling.guidance import Guidance, GuidanceInView, PseudoLabelRules
from soft_teacher.modeling.mask_losses import PseudoMaskMixin, drawing_masks_in
from soft_teacher.modeling.semantic_labels import with_labels
from soft_teacher.modeling.soft_nms import SoftNms, SoftNmsMixin, suppressing_by


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
        soft_nms: SoftNms | None = None,
        soft_nms_labels: bool = False,
        **kwargs,
    ):
        """
        Args:
            unsup_loss_weight: alpha of eq. 1.
            rules: which detections teach what.
            fixed_labels: whether the views carry pseudo labels, which then are the guidance.
            soft_nms: takes the place of NMS in inference; None leaves it.
            soft_nms_labels: whether it does so for pseudo labels too.
        """
        super().__init__(**kwargs)
        self.unsup_loss_weight = unsup_loss_weight
        self.rules = rules
        self.fixed_labels = fixed_labels
        self.soft_nms = soft_nms
        self.soft_nms_labels = soft_nms_labels
        if soft_nms is not None and not isinstance(self.roi_heads, SoftNmsMixin):
            raise ValueError(
                f"MODEL.ROI_HEADS.SOFT_NMS.ENABLED is True, but {type(self.roi_heads).__name__} "
                "cannot do soft-NMS; choose one of this project's heads by MODEL.ROI_HEADS.NAME."
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return {
            **super().from_config(cfg),
            "unsup_loss_weight": cfg.SOFT_TEACHER.UNSUP_LOSS_WEIGHT,
            "rules": PseudoLabelRules.from_config(cfg),
            "fixed_labels": labels_are_fixed(cfg),
            "soft_nms": SoftNms.from_config(cfg),
            "soft_nms_labels": cfg.MODEL.ROI_HEADS.SOFT_NMS.PSEUDO_LABELS,
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
        with self._suppression(self.soft_nms_labels), self._few_masks():
            detections, _ = self.roi_heads(images, features, proposals, None)

        def judge(score_boxes, refine_boxes, refine_classes, **stage):
            return self.roi_heads.score_and_refine(
                features, images.image_sizes, score_boxes, refine_boxes, refine_classes, **stage
            )

        return Guidance(detections, [x["matrix"] for x in weak], judge, self.rules)

    def _few_masks(self) -> AbstractContextManager:
        """Masks, which cost more than all else of the heads, for what is looked at alone."""
        if not isinstance(self.roi_heads, PseudoMaskMixin):
            return nullcontext()
        confident = partial(pseudo_labels.confident, min_score=self.rules.min_score)
        return drawing_masks_in(self.roi_heads, confident)

    def preprocess_image(self, batched_inputs: list[dict]) -> ImageList:
        """Detectron2's; maps of semantic labels go with the images, if there are any."""
        images = super().preprocess_image(batched_inputs)
        return with_labels(images, batched_inputs, self.backbone, self.device)

    def inference(self, *args, **kwargs) -> list:
        """Detectron2's, with soft-NMS if the config says so."""
        with self._suppression(True):
            return super().inference(*args, **kwargs)

    def _suppression(self, soft: bool) -> AbstractContextManager:
        """Soft-NMS, if there is one and it is wanted, inside of a `with` statement."""
        if self.soft_nms is None or not soft:
            return nullcontext()
        return suppressing_by(self.roi_heads, self.soft_nms)

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
