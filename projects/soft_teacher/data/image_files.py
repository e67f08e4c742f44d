"""Reading image files of every kind that people have, and their sizes."""

import struct
import zlib

import cv2
import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# What Pillow raises on damaged files, depending on the format and the place of the damage.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
# EXIF orientations that turn the image by a quarter.
_QUARTER_TURNS = (5, 6, 7, 8)


class ImageError(OSError):
    """An image file that is missing, damaged, no image, or not the image that was described."""


def read_image(
    file_name: str, image_format: str, stated_size: tuple[int, int] | None = None
) -> np.ndarray:
    """Decode an image file to 8 bits.

    Gray, palette, RGBA and CMYK images become color images, 16-bit ones keep their upper 8 bits.
    The image is turned upright by its EXIF tag. But if the stated size is that of the image as it
    lies in the file and not of the upright one, whoever stated it (and drew the boxes) saw the
    image without the tag, and it stays as it lies.

    Args:
        file_name: path of the file.
        image_format: channels of the result, as for `detection_utils.read_image`.
        stated_size: (height, width) from an annotation file, if there is one.

    Returns:
        (H, W, C) uint8.

    Raises:
        ImageError: the file cannot be read; the message names it.
    """
    try:
        with PathManager.open(file_name, "rb") as file, Image.open(file) as image:
            image.load()
            width, height = image.size
            lies_as_stated = stated_size == (height, width) and width != height
            if not (lies_as_stated and _is_turned(image)):
                ImageOps.exif_transpose(image, in_place=True)
            return _to_array(_to_eight_bits(image), image_format)
    except _DAMAGED as error:
        raise _image_error(file_name, error) from error


def read_image_size(file_name: str) -> tuple[int, int]:
    """(height, width) of the upright image, from the head of the file.

    Raises:
        ImageError: the file is missing or no image; the message names it.
    """
    try:
        with PathManager.open(file_name, "rb") as file, Image.open(file) as image:
            width, height = image.size
            return (width, height) if _is_turned(image) else (height, width)
    except _DAMAGED as error:
        raise _image_error(file_name, error) from error


def _is_turned(image: Image.Image) -> bool:
    return image.getexif().get(ExifTags.Base.Orientation) in _QUARTER_TURNS


def _to_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("it holds floating-point numbers; convert it to 8 bits a channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    return image


def _to_array(image: Image.Image, image_format: str) -> np.ndarray:
    if image_format == "BGR":
        # Detectron2 gives a view of the RGB image, which every later step would copy slowly.
        return cv2.cvtColor(convert_PIL_to_numpy(image, "RGB"), cv2.COLOR_RGB2BGR)
    return convert_PIL_to_numpy(image, image_format)


def _image_error(file_name: str, error: BaseException) -> ImageError:
    # The messages of the system and of Pillow repeat the path, which is named already.
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        reason = "it is in no image format that Pillow knows"
    return ImageError(f"Cannot read the image {file_name}: {reason}")
