"""Color operations of the labeled and the strong view: exactly one of nine.

The set of operations and their magnitudes are those of the official Soft Teacher code, which
follow RandAugment (Cubuk et al., 2020).
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform
from PIL import Image, ImageEnhance, ImageOps

# Levels are drawn uniformly from 1 to MAX_LEVEL.
MAX_LEVEL = 9


def _enhance(enhancer: type, level: int) -> Callable[[Image.Image], Image.Image]:
    factor = 0.1 + 0.18 * level
    return lambda image: enhancer(image).enhance(factor)


# Each takes a level and gives an operation on an RGB image; None leaves the image alone.
COLOR_OPERATIONS: dict[str, Callable[[int], Callable[[Image.Image], Image.Image] | None]] = {
    "identity": lambda level: None,
    "autocontrast": lambda level: ImageOps.autocontrast,
    "equalize": lambda level: ImageOps.equalize,
    "solarize": lambda level: partial(ImageOps.solarize, threshold=int(25.6 * level)),
    "color": partial(_enhance, ImageEnhance.Color),
    "contrast": partial(_enhance, ImageEnhance.Contrast),
    "brightness": partial(_enhance, ImageEnhance.Brightness),
    "sharpness": partial(_enhance, ImageEnhance.Sharpness),
    "posterize": lambda level: partial(ImageOps.posterize, bits=4 - int(0.4 * level)),
}


class RGBColorTransform(T.PILColorTransform):
    """A PIL operation on RGB images, applied to images of the given channel order.

    Args:
        op: operation on an RGB PIL image.
        image_format: "RGB" or "BGR", the channel order of the arrays.
    """

    def __init__(self, op: Callable[[Image.Image], Image.Image], image_format: str) -> None:
        super().__init__(op)
        self.image_format = image_format

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Apply to an image, (H, W, 3) uint8."""
        if self.image_format == "RGB":
            return super().apply_image(img)
        return super().apply_image(img[:, :, ::-1])[:, :, ::-1]


def color_transform(name: str, level: int, image_format: str) -> Transform:
    """One color operation.

    Args:
        name: a key of COLOR_OPERATIONS.
        level: strength, 1 to MAX_LEVEL; operations without a strength ignore it.
        image_format: "RGB" or "BGR".
    """
    op = COLOR_OPERATIONS[name](level)
    return NoOpTransform() if op is None else RGBColorTransform(op, image_format)


class RandomColor(T.Augmentation):
    """Exactly one of nine color operations, each as likely, at a random level.

    Args:
        image_format: channel order of the images, "RGB" or "BGR".
    """

    def __init__(self, image_format: str) -> None:
        super().__init__()
        if image_format not in ("RGB", "BGR"):
            raise ValueError(
                f"INPUT.FORMAT is {image_format}, but color operations need RGB or BGR images; "
                "choose one of these or set INPUT.AUG.COLOR to False."
            )
        self.image_format = image_format

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw an operation and its level."""
        name = np.random.choice(list(COLOR_OPERATIONS))
        level = np.random.randint(1, MAX_LEVEL + 1)
        return color_transform(name, level, self.image_format)
