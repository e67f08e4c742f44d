"""Instance masks in boxes, carried from the teacher's view into boxes of the student's.

Shape shorthand: B boxes of one image; m x m cells of a teacher's mask, M x M of a student's.

All points are continuous, in pixels of the view that is named: a view covers [0, W] x [0, H], and
the center of its first pixel is (0.5, 0.5). A mask is a grid of probabilities in a box: the
center of cell (i, j) of the box (x0, y0, x1, y1) is

    x = x0 + (j + 1/2) (x1 - x0) / M,    y = y0 + (i + 1/2) (y1 - y0) / M.

With A the matrix from the student's to the teacher's view, the target of that cell is

    t = p(A (x, y)),

where p interpolates the teacher's m x m probabilities bilinearly between its own cell centers and
is 0 outside the teacher's box, fading to it over half a cell: Detectron2's way to paste masks.
No mask is ever drawn in an image, nor rounded. Where A (x, y) lies outside the teacher's view,
nobody has seen the object or its absence: such a cell is unknown, which is not background.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cell_centers(boxes: Tensor, side: int) -> Tensor:
    """Centers of the cells of a grid in each box.

    Args:
        boxes: (B, 4), xyxy.
        side: M, cells along each side.

    Returns:
        float32 (B, M, M, 2), x and y; rows run along y.
    """
    boxes = boxes.float()
    share = (torch.arange(side, device=boxes.device, dtype=boxes.dtype) + 0.5) / side
    x, y = (boxes[:, i, None] + share * (boxes[:, i + 2] - boxes[:, i])[:, None] for i in (0, 1))
    size = (len(boxes), side, side)
    return torch.stack([x[:, None, :].expand(size), y[:, :, None].expand(size)], dim=3)


def map_points(points: Tensor, matrix: Tensor) -> Tensor:
    """Map points (..., 2) by an affine (3, 3) matrix; elementwise, so autocast leaves it alone."""
    x, y = points.unbind(dim=-1)
    new_x = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]
    new_y = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]
    return torch.stack([new_x, new_y], dim=-1)


def inside_image(points: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Mask (...) of the points (..., 2) that lie in a view of (height, width)."""
    x, y = points.unbind(dim=-1)
    height, width = image_size
    return (x >= 0) & (x <= width) & (y >= 0) & (y <= height)


def sample_masks(masks: Tensor, boxes: Tensor, points: Tensor) -> Tensor:
    """Read masks at points of the view that their boxes are in.

    Args:
        masks: (B, 1, m, m), probabilities in the boxes.
        boxes: (B, 4), xyxy, with area.
        points: (B, M, M, 2), of each mask its own.

    Returns:
        float32 (B, M, M); 0 outside the boxes.
    """
    boxes = boxes.float()[:, None, None]
    # Detectron2's own convention when it pastes a mask: -1 and 1 are the edges of the box.
    grid = (points - boxes[..., :2]) / (boxes[..., 2:] - boxes[..., :2]) * 2 - 1
    sampled = F.grid_sample(masks.float(), grid, padding_mode="zeros", align_corners=False)
    return sampled[:, 0]


def carry_masks(
    masks: Tensor,
    boxes: Tensor,
    targets: Tensor,
    matrix: Tensor,
    image_size: tuple[int, int],
    side: int,
) -> tuple[Tensor, Tensor]:
    """See masks of the teacher's view through boxes of the student's view.

    Args:
        masks: (B, 1, m, m), probabilities in `boxes`.
        boxes: (B, 4), xyxy, teacher's view, with area.
        targets: (B, 4), xyxy, student's view: through each, one mask is seen.
        matrix: (3, 3), student's view -> teacher's view.
        image_size: (height, width) of the teacher's view.
        side: M.

    Returns:
        Probabilities float32 (B, M, M), and bool (B, M, M) where they are known.
    """
    points = map_points(cell_centers(targets, side), matrix)
    return sample_masks(masks, boxes, points), inside_image(points, image_size)
