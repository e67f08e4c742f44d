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


def _solarize(image: np.ndarray, level: int) -> np.ndarray:
    """Invert values from a threshold up."""
    _, inverted = cv2.threshold(image, int(25.6 * level) - 1, 255, cv2.THRESH_BINARY)
    return cv2.bitwise_xor(image, inverted, dst=inverted)


def _posterize(image: np.ndarray, level: int) -> np.ndarray:
    """Drop the lowest bits."""
    dropped_bits = 4 + int(0.4 * level)
    return image & np.uint8(255 >> dropped_bits << dropped_bits)


def _linear(
    image: np.ndarray, slopes: float | np.ndarray, offsets: float | np.ndarray
) -> np.ndarray:
    """Slope times value plus offset, fractions dropped; one of each, or (3,), for the channels."""
    # By a matrix: OpenCV multiplies in less than half of the time in which it looks up in a table.
    matrix = np.zeros((3, 4))
    matrix[(0, 1, 2), (0, 1, 2)] = slopes
    matrix[:, 3] = offsets + _DROP_FRACTION
    return cv2.transform(image, matrix)


def _autocontrast(image: np.ndarray) -> np.ndarray:
    """Stretch the range of values that occur in each channel to 0..255."""
    # Over rows first, where neighbors in memory are compared with neighbors.
    low = image.min(axis=0).min(axis=0).astype(np.float64)
    ranges = image.max(axis=0).max(axis=0) - low
    slopes = np.divide(255, ranges, out=np.ones(3), where=ranges > 0)
    return _linear(image, slopes, np.where(ranges > 0, -low * slopes, 0.0))


def _equalize_table(counts: np.ndarray) -> np.ndarray:
    """Spread values so that all are as frequent; the step is Pillow's, from all but the last."""
    found = np.flatnonzero(counts)
    step = (counts.sum() - counts[found[-1]]) // 255
    if step == 0:
        return np.arange(256, dtype=np.uint8)
    below = np.cumsum(counts) - counts
    return np.clip((step // 2 + below) // step, 0, 255).astype(np.uint8)


def _equalize(image: np.ndarray) -> np.ndarray:
    """Map each channel by the table that its histogram gives."""
    # Apart: OpenCV looks values of one channel up in half the time of those of three.
    channels = cv2.split(image)
    for channel in channels:
        counts = cv2.calcHist([channel], [0], None, [256], [0, 256]).ravel().astype(np.int64)
        cv2.LUT(channel, _equalize_table(counts), dst=channel)
    return cv2.merge(channels)


def _contrast(image: np.ndarray, factor: float, luminance: tuple[float, ...]) -> np.ndarray:
    """Blend with the flat gray of the mean luminance."""
    mean = int(np.dot(cv2.mean(image)[:3], luminance) + 0.5)
    return _linear(image, factor, mean - factor * mean)


def _color(image: np.ndarray, factor: float, luminance: tuple[float, ...]) -> np.ndarray:
    """Blend with the gray image."""
    matrix = np.full((3, 4), _DROP_FRACTION)
    matrix[:, :3] = factor * np.eye(3) + (1 - factor) * np.array(luminance)
    return cv2.transform(image, matrix)


def _sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Blend with the smoothed image, in which a center weighs 5 and its eight neighbors 1."""
    mean = cv2.blur(image, (3, 3))
    share = (1 - factor) / 13
    found = cv2.addWeighted(image, factor + 4 * share, mean, 9 * share, _DROP_FRACTION, dst=mean)
    # Pillow smooths no pixel that lacks a neighbor.
    for edge in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
        found[edge] = image[edge]
    return found


# Each takes a level and the luminance's shares and gives an operation on images, (H, W, 3) uint8;
# None leaves the image alone.
COLOR_OPERATIONS: dict[str, Callable[[int, tuple[float, ...]], ImageOperation | None]] = {
    "identity": lambda level, luminance: None,
    "autocontrast": lambda level, luminance: _autocontrast,
    "equalize": lambda level, luminance: _equalize,
    "solarize": lambda level, luminance: partial(_solarize, level=level),
    "color": lambda level, luminance: partial(_color, factor=_factor(level), luminance=luminance),
    "contrast": lambda level, luminance: partial(
        _contrast, factor=_factor(level), luminance=luminance
    ),
    "brightness": lambda level, luminance: partial(_linear, slopes=_factor(level), offsets=0.0),
    "sharpness": lambda level, luminance: partial(_sharpness, factor=_factor(level)),
    "posterize": lambda level, luminance: partial(_posterize, level=level),
}

# Those that look at more than a pixel's own color.
_OF_NEIGHBORS = {"sharpness"}


class PixelwiseColor(T.ColorTransform):
    """A color operation by a pixel's own color and the statistics of all; neighbors do not matter.

    So it means the same at any size of the image.
    """


def color_transform(name: str, level: int, image_format: str) -> Transform:
    """One color operation, on images of (H, W, 3) uint8.

    Args:
        name: a key of COLOR_OPERATIONS.
        level: strength, 1 to MAX_LEVEL; operations without a strength ignore it.
        image_format: "RGB" or "BGR", the channel order of the images.
    """
    op = COLOR_OPERATIONS[name](level, _LUMINANCE[image_format])
    if op is None:
        return NoOpTransform()
    return T.ColorTransform(op) if name in _OF_NEIGHBORS else PixelwiseColor(op)


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
        # The draw of numpy's choice, which would make an array of the names each time.
        name = self.operations[np.random.randint(len(self.operations))]
        level = np.random.randint(1, MAX_LEVEL + 1)
        return color_transform(name, level, self.image_format)
