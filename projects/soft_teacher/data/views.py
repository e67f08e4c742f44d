"""A view of an image in two steps: first all is drawn, then the pixels are made."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import TransformList

from soft_teacher.data.geometry import matrix_of
from soft_teacher.data.rendering import ShapeInput, render_tensor


@dataclass(frozen=True)
class DrawnView:
    """What was drawn for a view.

    Attributes:
        size: (height, width) of the original image.
        transforms: of the original image to the view.
        matrix: (3, 3) float64, from the original's to the view's pixels.
    """

    size: tuple[int, int]
    transforms: TransformList
    matrix: np.ndarray


def draw_view(
    size: tuple[int, int], augmentations: T.AugmentationList, boxes: np.ndarray | None = None
) -> DrawnView:
    """Draw what is to be done to an image; no pixel is needed.

    Args:
        size: (height, width) of the image.
        augmentations: draw from numpy's global generator.
        boxes: (N, 4), xyxy, of the image, for augmentations that draw by them.
    """
    transforms = augmentations(ShapeInput((*size, 3), boxes))
    return DrawnView(size, transforms, matrix_of(transforms.transforms))


def render_view(image: np.ndarray, record: dict[str, Any], drawn: DrawnView) -> dict[str, Any]:
    """Make the view of an image that was drawn for it.

    Args:
        image: (H, W, C) uint8, the original, or, if the view is resized first, the original made
            smaller by `largest_reduction`. Left unchanged.
        record: gives `file_name` and `image_id`.
        drawn: for the original's size.

    Returns:
        A dict of `image` (uint8 tensor, (C, H, W)), `matrix` (float64 array, (3, 3), original to
        this view's pixels), `height` and `width` of the original, `file_name` and `image_id`.
    """
    return {
        "image": render_tensor(image, drawn.transforms),
        "matrix": drawn.matrix,
        "height": drawn.size[0],
        "width": drawn.size[1],
        "file_name": record["file_name"],
        "image_id": record["image_id"],
    }


def make_view(
    image: np.ndarray,
    record: dict[str, Any],
    augmentations: T.AugmentationList,
    boxes: np.ndarray | None = None,
) -> tuple[dict[str, Any], TransformList]:
    """Draw a view of an image and make it, see `draw_view` and `render_view`.

    Returns:
        The view and the transforms that were applied.
    """
    drawn = draw_view(image.shape[:2], augmentations, boxes)
    return render_view(image, record, drawn), drawn.transforms
