"""Which location of the teacher's feature maps answers for one of the student's.

A location is a point of a feature map. L levels; S locations of the student's view and T of the
weak view, those of all levels one after the other, each level row by row: Detectron2's order.
Points are xy in pixels of their view.

An anchor is mapped by its centre and its size: the centre decides the location, the size decides
the level. Its shape stays: views differ by flips, which leave anchors as they are, and by small
rotations and shears, for which there is no better anchor.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Pyramid(NamedTuple):
    """The feature maps of a view.

    Attributes:
        sizes: L (height, width), in locations.
        strides: L distances between locations, in pixels, finest first.
        offset: place of the first location, in strides (Detectron2: 0.5).
    """

    sizes: Sequence[tuple[int, int]]
    strides: Sequence[int]
    offset: float


def corresponding_locations(
    source: Pyramid,
    target: Pyramid,
    matrix: np.ndarray,
    image_size: tuple[int, int],
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """The location of another view that is nearest to each location of a view.

    Nearest in level first, by the ratio of the mapped anchor to that level's (anchors grow with
    the stride); then in place.

    Args:
        source: of the view that asks.
        target: of the view that answers.
        matrix: float64 (3, 3), source view -> target view. It stays on the host.
        image_size: (height, width) of the target view, without padding.
        device: of the result.

    Returns:
        int64 (S,), indices below T; bool (S,), whether the point lies inside the target image.
        Outside, the index is that of the nearest location at the border.
    """
    scale = math.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    starts = np.cumsum([0] + [height * width for height, width in target.sizes])
    indices, inside = [], []
    for (height, width), stride in zip(source.sizes, source.strides, strict=True):
        level = nearest_level(scale * stride, target.strides)
        x, y = _map_grid(height, width, stride, source.offset, matrix, device)
        inside.append((x >= 0) & (x < image_size[1]) & (y >= 0) & (y < image_size[0]))
        column = _nearest_cell(x, target.strides[level], target.offset, target.sizes[level][1])
        row = _nearest_cell(y, target.strides[level], target.offset, target.sizes[level][0])
        indices.append(int(starts[level]) + row * target.sizes[level][1] + column)
    return torch.cat(indices), torch.cat(inside)


def nearest_level(stride: float, strides: Sequence[int]) -> int:
    """Index of the level whose stride is nearest by ratio; the finer one where two are."""
    return min(range(len(strides)), key=lambda i: abs(math.log(strides[i] / stride)))


def _map_grid(
    height: int, width: int, stride: int, offset: float, matrix: np.ndarray, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Coordinates x and y, (height * width,) each, of a level's locations in the other view."""
    (a, b, c), (d, e, f) = matrix[:2].tolist()
    x = (torch.arange(width, device=device, dtype=torch.float32) + offset) * stride
    y = ((torch.arange(height, device=device, dtype=torch.float32) + offset) * stride)[:, None]
    return (a * x + b * y + c).flatten(), (d * x + e * y + f).flatten()


def _nearest_cell(position: Tensor, stride: int, offset: float, count: int) -> Tensor:
    """Index of the nearest of `count` cells along an axis, for each position (S,)."""
    return (position / stride - offset + 0.5).floor().clamp(min=0, max=count - 1).long()
