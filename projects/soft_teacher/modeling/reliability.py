"""How surely a region is background: the indicators of section 3.2, table 7.

A region that matches no pseudo box may still hold an object which the teacher missed. Each
indicator gives a reliability r_j of 0 to 1, which weighs the region's loss in eq. 5. R regions of
all images; nothing here has a gradient.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


def background_score(score: Tensor) -> Tensor:
    """BG-T and BG-S: the probability of the background itself.

    Args:
        score: (R,) p^bg of the teacher or of the student.
    """
    return score


def prediction_agreement(student_score: Tensor, teacher_score: Tensor) -> Tensor:
    """Pred-Diff, eq. 6: r = 1 - |p_S^bg - p_T^bg|.

    Args:
        student_score: (R,) p_S^bg.
        teacher_score: (R,) p_T^bg.
    """
    return 1.0 - (student_score - teacher_score).abs()


def overlap(iou: Tensor) -> Tensor:
    """IoU: among regions below the matching threshold, a larger IoU is the surer background.

    As hard negative mining has it: regions near an object are background for certain, while one
    far from all of them may hold an object that was missed.

    Args:
        iou: (R,) largest IoU with a pseudo box of the image; 0 where there is none.
    """
    return iou


def distance(iou: Tensor) -> Tensor:
    """Reverse-IoU: a smaller IoU is the surer background, r = 1 - IoU.

    Args:
        iou: as for :func:`overlap`.
    """
    return 1.0 - iou


class Indicator(NamedTuple):
    """A way to judge background.

    Attributes:
        needs: what `reliability` is given, in this order: "teacher" (p_T^bg), "student" (p_S^bg)
            or "iou" (largest IoU with a pseudo box that teaches classification).
        reliability: (R,) tensors -> (R,) r_j.
    """

    needs: tuple[str, ...]
    reliability: Callable[..., Tensor]


INDICATORS = {
    "teacher": Indicator(("teacher",), background_score),
    "student": Indicator(("student",), background_score),
    "pred_diff": Indicator(("student", "teacher"), prediction_agreement),
    "iou": Indicator(("iou",), overlap),
    "reverse_iou": Indicator(("iou",), distance),
}
"""SOFT_TEACHER.BACKGROUND.RELIABILITY, but for "none"."""
