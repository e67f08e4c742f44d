"""What a detector found, drawn on the image; no model runs here."""

import colorsys

import cv2
import numpy as np
import torch
from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from soft_teacher.analysis.drawing import draw_boxes, enlarge

# Steps of the golden ratio around the circle of hues keep all colors so far well apart.
_FIRST_HUE = 0.3
_HUE_STEP = 0.618
# Larger pictures show no more on a screen, and take long to draw.
LARGEST_SIDE = 1600


def as_photo(image: np.ndarray) -> np.ndarray:
    """An image, uint8 (H, W, 3), in a size to draw on and to look at."""
    factor = LARGEST_SIDE / max(image.shape[:2])
    if factor < 1:
        size = tuple(max(1, round(factor * side)) for side in image.shape[1::-1])
        return cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return enlarge(image, torch.zeros(0, 4))[0]


def draw_detections(
    photo: np.ndarray, size: tuple[int, int], entries: list[dict], names: dict[int, str]
) -> np.ndarray:
    """Draw detections with their classes and scores, a color for each class.

    Args:
        photo: uint8 (H, W, 3), RGB, the image in any size.
        size: (height, width) of the image that the detections are in.
        entries: in COCO's format for results: `bbox` (xywh), `category_id`, `score` and, for
            masks, `segmentation` (run-length code of the image's size).
        names: category id -> name; the order decides the colors.

    Returns:
        uint8 (H, W, 3), RGB, of the photo's size.
    """
    height, width = photo.shape[:2]
    boxes = torch.tensor([x["bbox"] for x in entries], dtype=torch.float32).reshape(-1, 4)
    boxes = BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
    scale = torch.tensor([width / size[1], height / size[0]]).repeat(2)
    masks = [_resized_mask(x["segmentation"], (width, height)) for x in entries if _has_mask(x)]
    colors = {category: _color(index) for index, category in enumerate(names)}
    return draw_boxes(
        photo,
        boxes * scale,
        [f"{names[x['category_id']]} {x['score']:.0%}" for x in entries],
        [colors[x["category_id"]] for x in entries],
        masks or None,
        bold=True,
    )


def _color(index: int) -> tuple[float, float, float]:
    """A bright color, RGB in 0-1, so that captions are easy to read on black."""
    return colorsys.hsv_to_rgb((_FIRST_HUE + index * _HUE_STEP) % 1, 0.75, 1.0)


def _has_mask(entry: dict) -> bool:
    return "segmentation" in entry


def _resized_mask(code: dict, size: tuple[int, int]) -> dict:
    """A run-length code of the mask in another (width, height)."""
    mask = cv2.resize(mask_util.decode(code), size, interpolation=cv2.INTER_NEAREST)
    return mask_util.encode(np.asfortranarray(mask))
