"""What the teacher tells the student about one batch of unlabeled images.

Shape shorthand: N images, R pseudo boxes of an image, B boxes to judge in an image, J jittered
copies, K classes. Boxes are xyxy in pixels of the view that is named.

`Guidance` lives in the frames of the weak views and knows nothing of the student. The student
binds it to its strong views (`GuidanceInView`) and asks: which pseudo boxes teach which loss,
and what does the teacher think of these boxes. The judge's work is put off until somebody asks,
so that the boxes to score and the jittered boxes share one pass through the teacher's head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor

from soft_teacher.modeling import box_jitter, pseudo_labels
from soft_teacher.modeling.pseudo_masks import carry_masks
from soft_teacher.modeling.view_geometry import OUTLINES, project_boxes, view_to_view

BoxJudge = Callable[..., tuple[list[Tensor], list[Tensor]]]
"""(boxes to score, boxes to refine, their classes), each a list over images, weak view ->
(probabilities (B, K+1) with the background last, refined boxes (B', 4)), both lists over images.
That of a detector with stages also takes `stage=k`: then stage k alone gives the probabilities,
while boxes are refined by all of them.
"""


@dataclass(frozen=True)
class PseudoLabelRules:
    """Thresholds and jitter settings, see PSEUDO_LABELS, MASK and JITTER in SOFT_TEACHER."""

    min_score: float
    rpn_score: float
    cls_score: float
    reg_variance: float
    mask_score: float
    outline: str
    jitter_enabled: bool
    num_jitter: int
    jitter_scale: float
    jitter_distribution: str
    jitter_variance: str

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "PseudoLabelRules":
        """Read the rules from a config.

        Raises:
            ValueError: a key has a value that is not among its choices.
        """
        labels, jitter = cfg.SOFT_TEACHER.PSEUDO_LABELS, cfg.SOFT_TEACHER.JITTER
        check_choice(
            "SOFT_TEACHER.JITTER.DISTRIBUTION", jitter.DISTRIBUTION, box_jitter.DISTRIBUTIONS
        )
        check_choice("SOFT_TEACHER.JITTER.VARIANCE", jitter.VARIANCE, box_jitter.VARIANCES)
        check_choice("SOFT_TEACHER.PSEUDO_LABELS.OUTLINE", labels.OUTLINE, OUTLINES)
        for key in ("RPN_SCORE", "CLS_SCORE"):
            if labels[key] < labels.MIN_SCORE:
                raise ValueError(
                    f"SOFT_TEACHER.PSEUDO_LABELS.{key} is {labels[key]}, below MIN_SCORE "
                    f"({labels.MIN_SCORE}), under which no detection is looked at; lower that too."
                )
        if jitter.ENABLED and jitter.NUM < 2:
            raise ValueError(
                f"SOFT_TEACHER.JITTER.NUM is {jitter.NUM}, but a variance needs at least 2 copies; "
                "set SOFT_TEACHER.JITTER.ENABLED to False to do without box jittering."
            )
        return cls(
            min_score=labels.MIN_SCORE,
            rpn_score=labels.RPN_SCORE,
            cls_score=labels.CLS_SCORE,
            reg_variance=labels.REG_VARIANCE,
            mask_score=cfg.SOFT_TEACHER.MASK.SCORE,
            outline=labels.OUTLINE,
            jitter_enabled=jitter.ENABLED,
            num_jitter=jitter.NUM,
            jitter_scale=jitter.SCALE,
            jitter_distribution=jitter.DISTRIBUTION,
            jitter_variance=jitter.VARIANCE,
        )


def check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError that names the config key if the value is not a choice of it."""
    if value not in choices:
        raise ValueError(f"{key} is {value!r}; choose one of {', '.join(map(repr, choices))}.")


class Guidance:
    """Pseudo labels of a batch and, on demand, the teacher's judgement of boxes.

    Attributes:
        labels: N `Instances` with `pred_boxes`, `pred_classes`, `scores` in the weak views, and
            `pred_masks`, (R, 1, m, m) probabilities in the boxes, if the teacher has masks.
        statistics: scalars (0-d tensors) for the log, filled in while the student uses this.
        normalizers: loss name -> 0-d tensor n: the student divided that loss by max(n, 1), and n
            depends on what this process saw. Filled in by the student; other losses are not in it.
    """

    def __init__(
        self,
        labels: list[Instances],
        matrices: list[np.ndarray],
        judge: BoxJudge,
        rules: PseudoLabelRules,
    ):
        """
        Args:
            labels: the teacher's detections on the weak views; those of low scores may be left out.
            matrices: N float64 (3, 3), original image -> weak view.
            judge: the teacher's head over the features that it kept.
            rules: thresholds and jitter settings.
        """
        self.labels = pseudo_labels.confident(labels, rules.min_score)
        self.matrices = matrices
        self.rules = rules
        self.statistics: dict[str, Tensor] = {}
        self.normalizers: dict[str, Tensor] = {}
        self._judge = judge
        self._variance: list[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def seen_from(self, views: list[dict]) -> "GuidanceInView":
        """This guidance in the frames of other views of the same images."""
        return GuidanceInView(self, views)

    @torch.no_grad()
    def score_boxes(self, boxes: list[Tensor], stage: int | None = None) -> list[Tensor]:
        """The teacher's class probabilities for boxes of the weak views.

        The jittered boxes that the variance needs go through the head in the same call.

        Args:
            boxes: N tensors (B, 4), xyxy, weak view.
            stage: stage of the teacher to ask; None asks the whole teacher, as in inference.

        Returns:
            N tensors (B, K+1), background last.
        """
        # Detectors without stages need not know the word.
        judge = self._judge if stage is None else partial(self._judge, stage=stage)
        jittered = None if self._variance is not None else self._jittered_boxes()
        if jittered is None:
            nothing = [x.new_zeros(0, 4) for x in boxes]
            return judge(boxes, nothing, [x.pred_classes[:0] for x in self.labels])[0]
        probabilities, refined = judge(
            boxes,
            [x.flatten(0, 1) for x in jittered],
            [x.pred_classes.repeat(len(j)) for x, j in zip(self.labels, jittered, strict=True)],
        )
        self._settle_variance(refined)
        return probabilities

    @property
    def variance(self) -> list[Tensor] | None:
        """N tensors (R,): box regression variance; None where box jittering is off."""
        if self._variance is None and self.rules.jitter_enabled:
            self.score_boxes([x.pred_boxes.tensor[:0] for x in self.labels])
        return self._variance

    @torch.no_grad()
    def _jittered_boxes(self) -> list[Tensor] | None:
        if not self.rules.jitter_enabled:
            return None
        rules, jittered = self.rules, []
        for labels in self.labels:
            boxes = labels.pred_boxes.tensor
            noise = box_jitter.draw_noise(rules.num_jitter, boxes, rules.jitter_distribution)
            jittered.append(box_jitter.jitter_boxes(boxes, noise, rules.jitter_scale))
        return jittered

    def _settle_variance(self, refined: list[Tensor]) -> None:
        self._variance = [
            box_jitter.box_regression_variance(
                x.view(self.rules.num_jitter, -1, 4),
                labels.pred_boxes.tensor,
                self.rules.jitter_variance,
            )
            for x, labels in zip(refined, self.labels, strict=True)
        ]


class GuidanceInView:
    """A `Guidance` in the frames of the student's views.

    Attributes:
        targets: N `Instances` with `gt_boxes` and `gt_classes`, one for each pseudo label.
        teaches_rpn, teaches_cls: N masks (R,) over `targets`.
        statistics: that of the guidance.
        normalizers: as those of the guidance, under the names that the heads give their losses.
    """

    def __init__(self, guidance: Guidance, views: list[dict]):
        assert len(guidance) == len(views), (len(guidance), len(views))
        self._guidance = guidance
        self._to_weak = []
        self.statistics = guidance.statistics
        self.normalizers: dict[str, Tensor] = {}
        self.targets, visible = [], []
        for labels, weak_matrix, view in zip(
            guidance.labels, guidance.matrices, views, strict=True
        ):
            strong_matrix, device = view["matrix"], labels.scores.device
            to_strong = view_to_view(weak_matrix, strong_matrix, device)
            self._to_weak.append(view_to_view(strong_matrix, weak_matrix, device))
            size = tuple(view["image"].shape[1:])
            targets = pseudo_labels.carry_to_view(labels, to_strong, size, guidance.rules.outline)
            self.targets.append(targets)
            visible.append(pseudo_labels.has_area(targets))
        self._visible = visible
        rules = guidance.rules
        self.teaches_rpn = self._above(rules.rpn_score)
        self.teaches_cls = self._above(rules.cls_score)

    def _above(self, threshold: float) -> list[Tensor]:
        return [
            pseudo_labels.above_score(labels, threshold) & visible
            for labels, visible in zip(self._guidance.labels, self._visible, strict=True)
        ]

    @property
    def teaches_reg(self) -> list[Tensor]:
        """N masks (R,) over `targets`: by variance, or by score where box jittering is off."""
        if self._guidance.variance is None:
            return self.teaches_cls
        return [
            pseudo_labels.below_variance(variance, self._guidance.rules.reg_variance) & visible
            for variance, visible in zip(self._guidance.variance, self._visible, strict=True)
        ]

    @property
    def teaches_mask(self) -> list[Tensor]:
        """N masks (R,) over `targets`: those that teach classification and score high enough."""
        return [
            cls & pseudo_labels.above_score(labels, self._guidance.rules.mask_score)
            for cls, labels in zip(self.teaches_cls, self._guidance.labels, strict=True)
        ]

    @torch.no_grad()
    def masks_in(
        self, boxes: list[Tensor], partners: list[Tensor], side: int
    ) -> tuple[Tensor, Tensor]:
        """The teacher's masks as seen through boxes of the student's views.

        Args:
            boxes: N tensors (B, 4), xyxy, student's view.
            partners: N int64 tensors (B,), the pseudo label whose mask is seen through each box.
            side: M, cells along each side of a box.

        Returns:
            Of all images together, probabilities float32 (B, M, M), and bool (B, M, M): False
            where they are unknown, see :mod:`soft_teacher.modeling.pseudo_masks`.
        """
        carried = [
            carry_masks(
                labels.pred_masks[partner],
                labels.pred_boxes.tensor[partner],
                x,
                matrix,
                labels.image_size,
                side,
            )
            for x, partner, matrix, labels in zip(
                boxes, partners, self._to_weak, self._guidance.labels, strict=True
            )
        ]
        probabilities, known = zip(*carried, strict=True)
        return torch.cat(probabilities), torch.cat(known)

    def background_scores(self, boxes: list[Tensor], stage: int | None = None) -> list[Tensor]:
        """The teacher's background probability for boxes of the student's views (BG-T).

        Args:
            boxes: N tensors (B, 4), xyxy, student's view.
            stage: see :meth:`Guidance.score_boxes`.

        Returns:
            N tensors (B,).
        """
        outline = self._guidance.rules.outline
        in_weak = [
            project_boxes(x, matrix, labels.image_size, outline)
            for x, matrix, labels in zip(boxes, self._to_weak, self._guidance.labels, strict=True)
        ]
        return [x[:, -1] for x in self._guidance.score_boxes(in_weak, stage)]

    def note(self, name: str, value: Tensor) -> None:
        """Leave a scalar for the log; it is read together with the losses, without a sync."""
        self.statistics[name] = value.detach().float()

    def note_pseudo_labels(self) -> None:
        """Leave the counts, scores and variances of the pseudo boxes for the log."""
        count = pseudo_labels.count_per_image
        self.note("pseudo_boxes_rpn", count(self.teaches_rpn))
        self.note("pseudo_boxes_cls", count(self.teaches_cls))
        self.note("pseudo_boxes_reg", count(self.teaches_reg))
        self.note("pseudo_score", _mean([x.scores for x in self._guidance.labels]))
        if self._guidance.variance is not None:
            self.note("pseudo_variance", _mean(self._guidance.variance))


def _mean(values: list[Tensor]) -> Tensor:
    """Mean over all images; NaN, which the log leaves out, if there is nothing to average."""
    return torch.cat(values).mean()
