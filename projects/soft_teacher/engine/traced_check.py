"""Whether two programs for one detector find the same objects, up to rounding."""

from dataclasses import dataclass

import torch
from torch import Tensor

BOX_TOLERANCE = 0.1
"""Pixels."""
SCORE_TOLERANCE = 1e-3
"""Of scores, and of the probabilities of a mask's pixels."""


@dataclass(frozen=True)
class Agreement:
    """Detections that were compared, and how far apart they are at most.

    Attributes:
        num_images: images that were looked at.
        num_detections: detections in them.
        box: largest difference of a coordinate, in pixels; infinite if a detection has no partner
            of its class.
        score: largest difference of scores, and of mask probabilities.
    """

    num_images: int = 0
    num_detections: int = 0
    box: float = 0.0
    score: float = 0.0

    @property
    def is_close(self) -> bool:
        """Whether rounding explains the differences."""
        return self.box <= BOX_TOLERANCE and self.score <= SCORE_TOLERANCE

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(
            self.num_images + other.num_images,
            self.num_detections + other.num_detections,
            max(self.box, other.box),
            max(self.score, other.score),
        )

    def __str__(self) -> str:
        return (
            f"{self.num_detections} detections in {self.num_images} images differ by at most "
            f"{self.box:.2g} pixels and {self.score:.2g} in score"
        )


def compare_detections(
    found: dict[str, Tensor],
    expected: dict[str, Tensor],
    score_threshold: float,
    max_detections: int,
) -> Agreement:
    """Compare the detections of two programs in one image.

    Each is compared with the nearest one of its class. Detections within rounding of the score
    threshold, or of the lowest score of as many as there may be, are in one program's output only
    by chance, and are not asked for.

    Args:
        found: `pred_boxes` (R, 4), `pred_classes` (R,), `scores` (R,) and, if the model has masks,
            `pred_masks` (R, 1, h, w), on any device.
        expected: alike, of another R.
        score_threshold: of the detector.
        max_detections: that it gives for an image.
    """
    found, expected = ({k: v.cpu() for k, v in x.items()} for x in (found, expected))
    lowest = score_threshold
    for detections in (found, expected):
        if len(detections["scores"]) >= max_detections:
            lowest = max(lowest, float(detections["scores"].min()))
    agreements = [
        _nearest(a, b, lowest + SCORE_TOLERANCE) for a, b in ((found, expected), (expected, found))
    ]
    return Agreement(
        1,
        len(expected["scores"]),
        max(box for box, _ in agreements),
        max(score for _, score in agreements),
    )


def _nearest(of: dict[str, Tensor], among: dict[str, Tensor], floor: float) -> tuple[float, float]:
    """Largest differences of boxes and of scores between detections and their nearest ones."""
    chosen = of["scores"] > floor
    if not chosen.any():
        return 0.0, 0.0
    if len(among["scores"]) == 0:
        return float("inf"), float("inf")
    boxes, other_boxes = of["pred_boxes"][chosen].double(), among["pred_boxes"].double()
    box = torch.cdist(boxes, other_boxes, p=torch.inf)
    box[of["pred_classes"][chosen, None] != among["pred_classes"]] = float("inf")
    score = (of["scores"][chosen, None] - among["scores"]).abs()
    # Boxes of one class may be the same where the border of the image cuts them.
    partners = torch.maximum(box / BOX_TOLERANCE, score / SCORE_TOLERANCE).argmin(dim=1)
    rows = torch.arange(len(partners))
    apart = score[rows, partners].max()
    if "pred_masks" in of:
        masks = (of["pred_masks"][chosen] - among["pred_masks"][partners]).abs().max()
        apart = torch.maximum(apart, masks)
    return float(box[rows, partners].max()), float(apart)
