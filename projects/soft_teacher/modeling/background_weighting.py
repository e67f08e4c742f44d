"""Soft teacher: the classification and regression losses on unlabeled images (eq. 4, 5, 10).

Shape shorthand: R sampled RoIs of all N unlabeled images of this process, K classes; class K is
the background. `image_index` (R,) tells which image a RoI belongs to.
"""

import torch
from torch import Tensor

CLS_NORMALIZERS = ("joint", "paper")
REG_NORMALIZERS = ("sampled", "foreground")


def soft_classification_loss(
    losses: Tensor,
    is_background: Tensor,
    reliability: Tensor,
    image_index: Tensor,
    num_images: int,
    normalizer: str,
) -> Tensor:
    """Classification loss with background RoIs weighted by their reliability (eq. 4-5).

    Args:
        losses: (R,) cross entropy l_cls of each RoI.
        is_background: bool (R,).
        reliability: (R,) r_j of eq. 5 for background RoIs; ignored for foreground ones.
        image_index: int64 (R,).
        num_images: N.
        normalizer: "joint" is the official code's: one weighted mean over all RoIs of all
            images, foreground RoIs weighing 1, the sum of weights taken as at least 1.
            "paper" is eq. 4-5 to the letter: in each image the mean over foreground plus the
            reliability-weighted mean over background, then the mean over images (eq. 3).

    Returns:
        0-d loss; zero and connected to the graph when there are no RoIs.
    """
    reliability = reliability.to(losses.dtype)
    if normalizer == "joint":
        weights = torch.where(is_background, reliability, torch.ones_like(losses))
        return (weights * losses).sum() / weights.sum().clamp(min=1.0)
    assert normalizer == "paper", normalizer
    zeros = torch.zeros_like(losses)
    foreground = (~is_background).to(losses.dtype)
    background = torch.where(is_background, reliability, zeros)
    return _weighted_mean_per_image(losses, foreground, image_index, num_images).mean() + (
        _weighted_mean_per_image(losses, background, image_index, num_images).mean()
    )


def box_regression_loss(
    loss_sums: Tensor, num_foreground: Tensor, num_sampled: int, normalizer: str
) -> Tensor:
    """Box regression loss of unlabeled images from per-image sums (eq. 10).

    Args:
        loss_sums: (N,) sum of l_reg over the foreground RoIs of each image.
        num_foreground: (N,) number of those RoIs, N_b^fg in eq. 10.
        num_sampled: RoIs sampled for classification in all images together.
        normalizer: "sampled" divides by `num_sampled` (official, and Detectron2's supervised
            loss). "foreground" is eq. 10: the mean over the foreground RoIs of each image,
            then the mean over images.

    Returns:
        0-d loss; zero and connected to the graph when there is no foreground.
    """
    if normalizer == "sampled":
        return loss_sums.sum() / max(num_sampled, 1)
    assert normalizer == "foreground", normalizer
    return (loss_sums / num_foreground.clamp(min=1)).mean()


def loss_normalizers(
    weights: Tensor, num_images: int, cls_normalizer: str, reg_normalizer: str
) -> dict[str, Tensor]:
    """What the two losses of one process are divided by, or by 1 where that is less.

    A loss times its normalizer is a sum over this process' RoIs or images, so that several
    processes can have one normalizer in common.

    Args:
        weights: (R,) 1 for foreground RoIs, r_j of eq. 5 for background RoIs.
        num_images: N.
        cls_normalizer: of :func:`soft_classification_loss`.
        reg_normalizer: of :func:`box_regression_loss`.

    Returns:
        "loss_cls" and "loss_box_reg", 0-d, without gradient.
    """
    per_image = weights.new_full((), num_images)
    num_rois = weights.new_full((), len(weights))
    return {
        "loss_cls": weights.detach().sum() if cls_normalizer == "joint" else per_image,
        "loss_box_reg": num_rois if reg_normalizer == "sampled" else per_image,
    }


def _weighted_mean_per_image(
    losses: Tensor, weights: Tensor, image_index: Tensor, num_images: int
) -> Tensor:
    """Weighted mean of (R,) losses in each image, zero where all weights are: (N,)."""
    sums = losses.new_zeros(num_images).index_add(0, image_index, losses * weights)
    totals = losses.new_zeros(num_images).index_add(0, image_index, weights)
    safe_totals = torch.where(totals > 0, totals, torch.ones_like(totals))
    return sums / safe_totals
