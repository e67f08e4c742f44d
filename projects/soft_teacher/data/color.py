"""Color operations of the labeled and the strong view.

The set of operations and their magnitudes are those of the official Soft Teacher code, which
follow RandAugment (Cubuk et al., 2020). They give what Pillow's ImageOps and ImageEnhance give,
to one gray level at most, without the way through Pillow's images and with fewer passes.
"""

from collections.abc import Callable, Sequence
from functools import partial

import cv2
import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform

# Levels are drawn uniformly from 1 to MAX_LEVEL.
MAX_LEVEL = 9

# Shares of the channels in the luminance (ITU-R 601-2), by channel order.
_LUMINANCE = {"RGB": (0.299, 0.587, 0.114), "BGR": (0.114, 0.587, 0.299)}
# Pillow drops fractions where OpenCV rounds. Not quite a half: whole numbers stay as they are.
_DROP_FRACTION = -0.49

ImageOperation = Callable[[np.ndarray], np.ndarray]


def _factor(level: int) -> float:
    return 0.1 + 0.18 * level


def _solarize_table(level: int) -> np.ndarray:
    values = np.arange(256)
    return np.where(values < int(25.6 * level), values, 255 - values).astype(np.uint8)


def _posterize_table(level: int) -> np.ndarray:
    dropped_bits = 4 + int(0.4 * level)
    return (np.arange(256) >> dropped_bits << dropped_bits).astype(np.uint8)


def _blend_table(start: int, factor: float) -> np.ndarray:
    """Values on the line from `start` through the old values; in float32, as in Pillow."""
    distance = np.arange(-start, 256 - start, dtype=np.float32)
    return np.clip(start + np.float32(factor) * distance, 0, 255).astype(np.uint8)


def _autocontrast_table(counts: np.ndarray) -> np.ndarray:
    """Stretch the range of values that occur to 0..255."""
    found = np.flatnonzero(counts)
    low, high = found[0], found[-1]
    if low == high:
        return np.arange(256, dtype=np.uint8)
    scale = 255.0 / (high - low)
    return np.clip(np.arange(256) * scale - low * scale, 0, 255).astype(np.uint8)


def _equalize_table(counts: np.ndarray) -> np.ndarray:
    """Spread values so that all are as frequent; the step is Pillow's, from all but the last."""
    found = np.flatnonzero(counts)
    step = (counts.sum() - counts[found[-1]]) // 255
    if step == 0:
        return np.arange(256, dtype=np.uint8)
    below = np.cumsum(counts) - counts
    return np.clip((step // 2 + below) // step, 0, 255).astype(np.uint8)


def _by_histogram(image: np.ndarray, table_of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Map each channel by the table that its histogram, (256,) int64, gives."""
    histograms = [
        cv2.calcHist([image], [channel], None, [256], [0, 256]).ravel().astype(np.int64)
        for channel in range(3)
    ]
    return cv2.LUT(image, np.stack([table_of(counts) for counts in histograms], axis=-1)[None])


def _contrast(image: np.ndarray, factor: float, luminance: tuple[float, ...]) -> np.ndarray:
    """Blend with the flat gray of the mean luminance."""
    mean = int(np.dot(cv2.mean(image)[:3], luminance) + 0.5)
    return cv2.LUT(image, _blend_table(mean, factor))


def _color(image: np.ndarray, factor: float, luminance: tuple[float, ...]) -> np.ndarray:
    """Blend with the gray image."""
    matrix = np.full((3, 4), _DROP_FRACTION)
    matrix[:, :3] = factor * np.eye(3) + (1 - factor) * np.array(luminance)
    return cv2.transform(image, matrix)


def _sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the smoothed image, in which a center weighs 5 and its eight neighbors 1."""
    mean = cv2.blur(image, (3, 3))
    share = (1 - factor) / 13
    found = cv2.addWeighted(image, factor + 4 * share, mean, 9 * share, _DROP_FRACTION)
    # Pillow smooths no pixel that lacks a neighbor.
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        found[edge] = image[edge]
    return found


# Each takes a level and the luminance's shares and gives an operation on images, (H, W, 3) uint8;
# None leaves the image alone.
COLOR_OPERATIONS: dict[str, Callable[[int, tuple[float, ...]], ImageOperation | None]] = {
    "identity": lambda level, luminance: None,
    "autocontrast": lambda level, luminance: partial(_by_histogram, table_of=_autocontrast_table),
    "equalize": lambda level, luminance: partial(_by_histogram, table_of=_equalize_table),
    "solarize": lambda level, luminance: partial(cv2.LUT, lut=_solarize_table(level)),
    "color": lambda level, luminance: partial(_color, factor=_factor(level), luminance=luminance),
    "contrast": lambda level, luminance: partial(
        _contrast, factor=_factor(level), luminance=luminance
    ),
    "brightness": lambda level, luminance: partial(cv2.LUT, lut=_blend_table(0, _factor(level))),
    "sharpness": lambda level, luminance: partial(_sharpness, factor=_factor(level)),
    "posterize": lambda level, luminance: partial(cv2.LUT, lut=_posterize_table(level)),
}


def color_transform(name: str, level: int, image_format: str) -> Transform:
    """One color operation, on images of (H, W, 3) uint8.

    Args:
        name: a key of COLOR_OPERATIONS.
        level: strength, 1 to MAX_LEVEL; operations without a strength ignore it.
        image_format: "RGB" or "BGR", the channel order of the images.
    """
    op = COLOR_OPERATIONS[name](level, _LUMINANCE[image_format])
    return NoOpTransform() if op is None else T.ColorTransform(op)


class RandomColor(T.Augmentation):
    """Exactly one of several color operations, each as likely, at a random level.

    Args:
        image_format: channel order of the images, "RGB" or "BGR".
        operations: keys of COLOR_OPERATIONS.
    """

    def __init__(self, image_format: str, operations: Sequence[str] = (*COLOR_OPERATIONS,)) -> None:
        super().__init__()
        if image_format not in _LUMINANCE:
            raise ValueError(
                f"INPUT.FORMAT is {image_format}, but color operations need RGB or BGR images; "
                "choose one of these or set INPUT.AUG.COLOR to False."
            )
        self.image_format = image_format
        self.operations = list(operations)

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw an operation and its level."""
        name = np.random.choice(self.operations)
        level = np.random.randint(1, MAX_LEVEL + 1)
        return color_transform(name, level, self.image_format)
