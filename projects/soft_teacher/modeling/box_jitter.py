"""Box jittering: how far to trust the place of a pseudo box (section 3.3, eq. 7-9).

Shape shorthand: R pseudo boxes, J jittered copies of each (N_jitter). Boxes are xyxy in pixels
of the teacher's weak view.
"""

import torch
from torch import Tensor

DISTRIBUTIONS = ("gaussian", "uniform")
VARIANCES = ("per_axis", "paper")


def draw_noise(num_jitter: int, boxes: Tensor, distribution: str) -> Tensor:
    """Draw one offset for each coordinate of each copy, in units of the jitter scale.

    Args:
        num_jitter: J.
        boxes: (R, 4), for their number, device and type only.
        distribution: "gaussian" (unit variance; official) or "uniform" (in [-1, 1]).

    Returns:
        (J, R, 4).
    """
    if distribution == "gaussian":
        return torch.randn(num_jitter, *boxes.shape, device=boxes.device, dtype=boxes.dtype)
    assert distribution == "uniform", distribution
    return torch.rand(num_jitter, *boxes.shape, device=boxes.device, dtype=boxes.dtype) * 2 - 1


def jitter_boxes(boxes: Tensor, noise: Tensor, scale: float) -> Tensor:
    """jitter(b) of eq. 7: move each coordinate on its own by a fraction of the box's side.

    Sides below one pixel count as one pixel. Jittered boxes are not clipped and may turn
    inside out, as in the official code.

    Args:
        boxes: (R, 4).
        noise: (J, R, 4) from :func:`draw_noise`.
        scale: offset in sides of the box at unit noise (official: 0.06).

    Returns:
        (J, R, 4).
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1.0).repeat(1, 2)
    return boxes + noise * scale * sides


def box_regression_variance(refined: Tensor, boxes: Tensor, definition: str) -> Tensor:
    """Box regression variance of pseudo boxes (eq. 8-9); low means reliable.

    The paper calls it a variance; it is a standard deviation (over J copies, with the J - 1
    denominator of the official code) relative to the size of the box.

    Args:
        refined: (J, R, 4), the refined jittered boxes of eq. 7.
        boxes: (R, 4), the pseudo boxes b_i.
        definition: "per_axis" divides the deviations of x by the width and those of y by the
            height of the mean refined box (official). "paper" is eq. 9 to the letter: all four
            are divided by half the sum of height and width of b_i.

    Returns:
        (R,).
    """
    if boxes.shape[0] == 0:
        return boxes.new_zeros(0)
    deviations = refined.std(dim=0, unbiased=True)
    return relative_deviation(deviations, refined.mean(dim=0), boxes, definition)


def relative_deviation(
    deviations: Tensor, mean_boxes: Tensor, boxes: Tensor, definition: str
) -> Tensor:
    """Deviations of four coordinates as one number in units of the box (eq. 8).

    Args:
        deviations: (R, 4), standard deviation of each coordinate, in pixels.
        mean_boxes: (R, 4), mean of what deviates.
        boxes: (R, 4), the pseudo boxes b_i.
        definition: see :func:`box_regression_variance`.

    Returns:
        (R,).
    """
    reference = mean_boxes if definition == "per_axis" else boxes
    sides = (reference[:, 2:] - reference[:, :2]).clamp(min=1.0)
    if definition == "per_axis":
        divisors = sides.repeat(1, 2)
    else:
        assert definition == "paper", definition
        divisors = sides.mean(dim=1, keepdim=True)
    return (deviations / divisors).mean(dim=1)
