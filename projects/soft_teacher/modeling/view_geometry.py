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


def project_boxes(
    boxes: Tensor, matrix: Tensor, image_size: tuple[int, int], outline: str = "corners"
) -> Tensor:
    """Map boxes by an affine matrix, enclose the result axis-aligned and clip it once.

    What a box turns into when it is rotated or sheared is a matter of what it bounds:

    - "corners": the box around its four corners, as in the official code. It holds whatever was in
      the box, and is larger than the object unless that fills the corners: by 17 % of its width
      for a box of 25 x 33 pixels that is turned by 8 degrees.
    - "ellipse": the box around the ellipse that the box circumscribes (Kalra et al., Towards
      Rotation Invariance in Object Detection, ICCV 2021), 1 % wider in that case.

    Without rotation and shear both are the same. Boxes that leave the image shrink to zero area;
    they are not dropped.

    Args:
        boxes: (R, 4) xyxy in the source view.
        matrix: (3, 3) from :func:`view_to_view`.
        image_size: (height, width) of the target view.
        outline: one of `OUTLINES`.

    Returns:
        (R, 4) xyxy in the target view, inside it.
    """
    return clip_boxes(_ENCLOSE[outline](boxes.float(), matrix), image_size)


def _around_corners(boxes: Tensor, matrix: Tensor) -> Tensor:
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    x, y = _carry(
        torch.stack([x0, x1, x1, x0], dim=1), torch.stack([y0, y0, y1, y1], dim=1), matrix
    )
    return torch.stack([x.amin(dim=1), y.amin(dim=1), x.amax(dim=1), y.amax(dim=1)], dim=1)


def _around_ellipse(boxes: Tensor, matrix: Tensor) -> Tensor:
    x0, y0, x1, y1 = boxes.unbind(dim=1)
    x, y = _carry((x0 + x1) / 2, (y0 + y1) / 2, matrix)
    half_x, half_y = (x1 - x0) / 2, (y1 - y0) / 2
    reach_x = torch.hypot(matrix[0, 0] * half_x, matrix[0, 1] * half_y)
    reach_y = torch.hypot(matrix[1, 0] * half_x, matrix[1, 1] * half_y)
    return torch.stack([x - reach_x, y - reach_y, x + reach_x, y + reach_y], dim=1)


def _carry(x: Tensor, y: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Points, elementwise."""
    return (
        matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2],
        matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2],
    )


_ENCLOSE = {"corners": _around_corners, "ellipse": _around_ellipse}
OUTLINES = tuple(_ENCLOSE)
