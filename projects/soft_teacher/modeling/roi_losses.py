"""The losses of one RoI head, or of one stage of a cascade, on unlabeled images (eq. 4, 5, 10).

Shape shorthand: N images, R RoIs of all images, the first S_i of image i sampled for
classification, S of all images; K classes (class K is the background).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch import Tensor

from soft_teacher.modeling.background_weighting import (
    box_regression_loss,
    loss_normalizers,
    soft_classification_loss,
)
from soft_teacher.modeling.reliability import INDICATORS
from soft_teacher.modeling.roi_sampling import UnlabeledSample


class RoILosses(NamedTuple):
    """What a head learns from, and what is known of it.

    Attributes:
        losses: "loss_cls" and "loss_box_reg", 0-d.
        normalizers: of both, see `loss_normalizers`.
        background_weight: 0-d, mean r_j of background RoIs.
    """

    losses: dict[str, Tensor]
    normalizers: dict[str, Tensor]
    background_weight: Tensor


def unlabeled_roi_losses(
    logits: Tensor,
    deltas: Tensor,
    samples: list[UnlabeledSample],
    evidence: dict[str, Tensor],
    predictor: FastRCNNOutputLayers,
    *,
    num_classes: int,
    reliability: str,
    cls_normalizer: str,
    reg_normalizer: str,
) -> RoILosses:
    """Both losses of the RoIs of all images.

    Args:
        logits: (R, K+1), the student's.
        deltas: (R, 4K) or (R, 4), the student's.
        samples: N samples, whose RoIs these are.
        evidence: of the S RoIs, see `gather_evidence`.
        predictor: the layers that predicted; their regression loss and loss weights are used.
        num_classes: K.
        reliability: name of an indicator, or "none".
        cls_normalizer: of `soft_classification_loss`.
        reg_normalizer: of `box_regression_loss`.
    """
    num_rois = [len(s.boxes) for s in samples]
    classes = torch.cat([s.classes for s in samples])
    sampled_logits = torch.cat(
        [x[: s.num_sampled] for x, s in zip(logits.split(num_rois), samples, strict=True)]
    )
    is_background = classes == num_classes
    weights = background_weights(sampled_logits, is_background, evidence, reliability)
    loss_cls = soft_classification_loss(
        F.cross_entropy(sampled_logits, classes, reduction="none"),
        is_background,
        weights,
        _image_index(samples),
        len(samples),
        cls_normalizer,
    )
    sums = [
        _regression_loss_sum(s, d, predictor)
        for s, d in zip(samples, deltas.split(num_rois), strict=True)
    ]
    loss_box_reg = box_regression_loss(
        torch.stack(sums),
        torch.tensor([len(s.reg_rows) for s in samples], device=classes.device),
        len(classes),
        reg_normalizer,
    )
    loss_weight = predictor.loss_weight
    return RoILosses(
        {
            "loss_cls": loss_cls * loss_weight.get("loss_cls", 1.0),
            "loss_box_reg": loss_box_reg * loss_weight.get("loss_box_reg", 1.0),
        },
        loss_normalizers(weights, len(samples), cls_normalizer, reg_normalizer),
        _mean_of(weights, is_background),
    )


@torch.no_grad()
def background_weights(
    logits: Tensor, is_background: Tensor, evidence: dict[str, Tensor], reliability: str
) -> Tensor:
    """r_j of eq. 5 for the RoIs sampled for classification (S,); foreground holds 1.

    Args:
        logits: (S, K+1), the student's.
        is_background: bool (S,).
        evidence: see `gather_evidence`.
        reliability: name of an indicator, or "none".
    """
    ones = logits.new_ones(len(logits))
    if reliability == "none":
        return ones
    known = {**evidence, "student": F.softmax(logits, dim=1)[:, -1]}
    indicator = INDICATORS[reliability]
    weights = indicator.reliability(*(known[x] for x in indicator.needs))
    return torch.where(is_background, weights.to(logits.dtype), ones)


def _image_index(samples: list[UnlabeledSample]) -> Tensor:
    """Which image each RoI sampled for classification belongs to: int64 (S,)."""
    device, counts = samples[0].classes.device, [s.num_sampled for s in samples]
    return torch.repeat_interleave(
        torch.arange(len(samples), device=device),
        torch.tensor(counts, device=device),
        output_size=sum(counts),
    )


def _mean_of(weights: Tensor, mask: Tensor) -> Tensor:
    chosen = mask.to(weights.dtype)
    return (weights * chosen).sum() / chosen.sum().clamp(min=1.0)


def _regression_loss_sum(
    sample: UnlabeledSample, deltas: Tensor, predictor: FastRCNNOutputLayers
) -> Tensor:
    """Sum of l_reg over the F foreground RoIs of an image; Detectron2's returns the mean."""
    mean = predictor.box_reg_loss(
        sample.boxes[sample.reg_rows],
        sample.reg_boxes,
        deltas[sample.reg_rows],
        sample.reg_classes,
    )
    return mean * len(sample.reg_rows)
