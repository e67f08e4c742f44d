"""Carrying boxes from one augmented view of an image to another.

Shape shorthand: R boxes; matrices are 3x3, homogeneous, "original image -> view", in pixels.
Those of views are numpy arrays: they stay on the host, where DDP does not move them about, and
autocast does not touch them. On the device everything is elementwise, for the same reason.
"""

import numpy as np
import torch
from torch import Tensor


def view_to_view(source: np.ndarray, target: np.ndarray, device: torch.device) -> Tensor:
    """Matrix that carries points of the source view to the target view.

    Args:
        source, target: float64 (3, 3), original image -> view.
        device: of the boxes to carry.

    Returns:
        float32 (3, 3).
    """
    matrix = target @ np.linalg.inv(source)
    return torch.from_numpy(matrix).to(device, torch.float32)


def clip_boxes(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Boxes (R, 4), xyxy, inside an image of (height, width).

    Detectron2's `Boxes.clip` also asserts that they are finite, for which the host has to wait.
    """
    height, width = image_size
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    return torch.stack(
        [
            *(x0.clamp(min=0, max=width), y0.clamp(min=0, max=height)),
            *(x1.clamp(min=0, max=width), y1.clamp(min=0, max=height)),
        ],
        dim=1,
    )


def project_boxes(boxes: Tensor, matrix: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Map boxes by an affine matrix, enclose the result axis-aligned and clip it once.

    Rotated and sheared boxes grow to the box that encloses their four corners, as in the
    official code. Boxes that leave the image shrink to zero area; they are not dropped.

    Args:
        boxes: (R, 4) xyxy in the source view.
        matrix: (3, 3) from :func:`view_to_view`.
        image_size: (height, width) of the target view.

    Returns:
        (R, 4) xyxy in the target view, inside it.
    """
    x0, y0, x1, y1 = boxes.float().unbind(dim=1)
    x = torch.stack([x0, x1, x1, x0], dim=1)
    y = torch.stack([y0, y0, y1, y1], dim=1)
    new_x = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]
    new_y = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]
    height, width = image_size
    new_x = new_x.clamp(min=0, max=width)
    new_y = new_y.clamp(min=0, max=height)
    return torch.stack(
        [new_x.amin(dim=1), new_y.amin(dim=1), new_x.amax(dim=1), new_y.amax(dim=1)], dim=1
    )
