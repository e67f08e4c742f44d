"""Soft teacher for dense detectors: weights of the anchors in the focal loss (eq. 4-5).

Shape shorthand: N images, R anchors (locations, for FCOS) of an image, K classes. Labels are
Detectron2's: a class, K for the background, -1 for an anchor that is ignored.

The focal loss is a sum over about 1e5 anchors divided by the number of positive ones, so eq. 5 to
the letter, which lets the weights of all negatives add up to one, would shrink them to the weight
of a single one. Their mean is one here instead.
"""

import torch
import torch.nn.functional as F
from fvcore.nn import sigmoid_focal_loss_jit
from torch import Tensor


def foreground_mask(labels: Tensor, num_classes: int) -> Tensor:
    """Where labels (any shape) are those of objects."""
    return (labels >= 0) & (labels != num_classes)


def anchor_weights(
    labels: Tensor, reliability: Tensor, num_classes: int, per_image: bool
) -> Tensor:
    """Weight of each anchor in the classification loss.

    w = 1 for positives, 0 for ignored anchors, and w_j = r_j N_neg / sum(r) for the N_neg
    negatives: a mean of one, over all images or in each.

    Args:
        labels: int64 (N, R).
        reliability: (N, R) r_j, not negative; of negatives it counts.
        num_classes: K.
        per_image: whether each image has a mean of its own ("paper", eq. 5 is per image), or all
            images of the batch one in common ("joint").

    Returns:
        (N, R), no gradient.
    """
    negative = (labels == num_classes).to(reliability.dtype)
    kept = reliability.detach() * negative
    dims = (1,) if per_image else (0, 1)
    mean = kept.sum(dims, keepdim=True) / negative.sum(dims, keepdim=True).clamp(min=1.0)
    # A mean of zero is that of no negatives, or of none that is reliable: nothing to scale.
    scaled = kept / torch.where(mean > 0, mean, torch.ones_like(mean))
    return scaled + foreground_mask(labels, num_classes).to(scaled.dtype)


def weighted_focal_loss(
    logits: Tensor, labels: Tensor, weights: Tensor, alpha: float, gamma: float
) -> Tensor:
    """Sum over all anchors of weight times focal loss, the latter summed over classes.

    Args:
        logits: (N, R, K).
        labels: int64 (N, R).
        weights: (N, R), 0 for ignored anchors.
        alpha, gamma: of the focal loss.

    Returns:
        0-d, connected to the graph.
    """
    targets = F.one_hot(labels.clamp(min=0), logits.shape[-1] + 1)[..., :-1]
    losses = sigmoid_focal_loss_jit(
        logits, targets.to(logits.dtype), alpha=alpha, gamma=gamma, reduction="none"
    )
    return (losses.sum(dim=-1) * weights).sum()
