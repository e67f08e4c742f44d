"""What the teacher tells the student, if it is a dense detector.

To the trainer and to the monitors this is a `Guidance`. In place of a judge of boxes it keeps what
the teacher predicted everywhere on the weak views: nothing has to be run again.

Shape shorthand: N images, T locations of the weak views on all levels, S those of the student's
views, A anchors at each location (1 for FCOS), R pseudo boxes of an image.
"""

from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor

from soft_teacher.modeling import pseudo_labels
from soft_teacher.modeling.dense_correspondence import Pyramid, corresponding_locations
from soft_teacher.modeling.dense_spread import SpreadRules, prediction_spread
from soft_teacher.modeling.guidance import Guidance, GuidanceInView, PseudoLabelRules


@dataclass(frozen=True)
class DensePredictions:
    """What a dense teacher predicted on N weak views.

    Attributes:
        foreground: (N, T, A), the largest class probability of each anchor.
        pyramid: the feature maps that the T locations are of.
        candidates: N `Instances` with `pred_boxes`, `pred_classes` and `scores`: the boxes that
            entered NMS, clipped to the image.
    """

    foreground: Tensor
    pyramid: Pyramid
    candidates: list[Instances]


class DenseGuidance(Guidance):
    """Pseudo labels of a batch and the dense predictions that they come from."""

    def __init__(
        self,
        labels: list[Instances],
        matrices: list[np.ndarray],
        predictions: DensePredictions,
        rules: PseudoLabelRules,
        spread_rules: SpreadRules,
    ):
        """
        Args:
            labels: the teacher's detections on the weak views.
            matrices: N float64 (3, 3), original image -> weak view.
            predictions: what they were chosen from.
            rules: thresholds; of the settings of box jittering only whether it is enabled counts.
            spread_rules: which predictions tell the spread of a pseudo box.
        """
        super().__init__(labels, matrices, _judge, rules)
        self.predictions = predictions
        self._spread_rules = spread_rules

    def seen_from(self, views: list[dict]) -> "DenseGuidanceInView":
        return DenseGuidanceInView(self, views)

    @property
    def variance(self) -> list[Tensor] | None:
        """N tensors (R,): spread of the predictions around each pseudo box, infinite where there
        are too few; None where SOFT_TEACHER.JITTER.ENABLED is False."""
        if self._variance is None and self.rules.jitter_enabled:
            self._variance = [
                prediction_spread(labels, candidates, self._spread_rules)
                for labels, candidates in zip(self.labels, self.predictions.candidates, strict=True)
            ]
        return self._variance


class DenseGuidanceInView(GuidanceInView):
    """A `DenseGuidance` in the frames of the student's views."""

    def __init__(self, guidance: DenseGuidance, views: list[dict]):
        super().__init__(guidance, views)
        self._matrices = [view["matrix"] for view in views]

    @torch.no_grad()
    def background_reliability(self, pyramid: Pyramid) -> Tensor:
        """r_j = 1 - max_c p_T,c of the teacher's anchor at the place of each anchor of the student.

        An anchor whose centre the weak view does not show has r = 1: the weak view holds the whole
        image, so there the strong view holds nothing but filling or padding.

        Args:
            pyramid: the student's feature maps.

        Returns:
            (N, S * A), in the order of the student's anchors.
        """
        predictions, weak_matrices = self._guidance.predictions, self._guidance.matrices
        rows = []
        for foreground, labels, weak, strong in zip(
            predictions.foreground,
            self._guidance.labels,
            weak_matrices,
            self._matrices,
            strict=True,
        ):
            index, inside = corresponding_locations(
                pyramid,
                predictions.pyramid,
                weak @ np.linalg.inv(strong),
                labels.image_size,
                foreground.device,
            )
            rows.append((1.0 - foreground[index] * inside[:, None]).flatten())
        return torch.stack(rows)

    def note_pseudo_labels(self) -> None:
        """Leave the counts, scores and spreads of the pseudo boxes for the log."""
        count = pseudo_labels.count_per_image
        self.note("pseudo_boxes_cls", count(self.teaches_cls))
        self.note("pseudo_boxes_reg", count(self.teaches_reg))
        self.note("pseudo_score", torch.cat([x.scores for x in self._guidance.labels]).mean())
        if self._guidance.variance is not None:
            spreads = torch.cat(self._guidance.variance)
            known = torch.where(spreads.isfinite(), spreads, torch.nan)
            self.note("pseudo_variance", known.nanmean())


def _judge(*args) -> NoReturn:
    raise AssertionError("A dense detector judges no boxes; ask `background_reliability`.")
