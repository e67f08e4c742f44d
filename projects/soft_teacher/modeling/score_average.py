"""How the stages of a cascade become one class score."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

SCORE_AVERAGES = ("logits", "probabilities")


def average_scores(logits: Sequence[Tensor], kind: str) -> Tensor:
    """Class probabilities of R boxes by several stages.

    Args:
        logits: of each stage (R, K+1).
        kind: "logits", the softmax of the mean (mmdetection), or "probabilities", the mean of the
            softmaxes (Detectron2). Of a single stage both are the same.

    Returns:
        (R, K+1).
    """
    if kind == "logits":
        return F.softmax(sum(logits) / len(logits), dim=1)
    assert kind == "probabilities", kind
    return sum(F.softmax(x, dim=1) for x in logits) / len(logits)
