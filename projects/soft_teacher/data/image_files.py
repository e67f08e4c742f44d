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

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
"""What is read, by Pillow's names. Its other formats are rarely met and little tested with bad
files, and for some of them (EPS) it starts another program."""

MAX_PIXELS = 200_000_000
"""Default of INPUT.MAX_PIXELS; an image of 12,000 x 12,000 has 144 million."""


class ImageError(OSError):
    """An image file that is missing, damaged, no image, or not the image that was described."""


def read_image(
    file_name: str,
    image_format: str,
    stated_size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
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
        max_pixels: INPUT.MAX_PIXELS. An image of more, by the head of its file, is not decoded.

    Returns:
        (H, W, C) uint8.

    Raises:
        ImageError: the file cannot be read; the message names it.
    """
    _let_pillow_read(max_pixels)
    try:
        with PathManager.open(file_name, "rb") as file, Image.open(file, formats=FORMATS) as image:
            _check_pixels(image, max_pixels)
            image.load()
            width, height = image.size
            lies_as_stated = stated_size == (height, width) and width != height
            if not (lies_as_stated and _is_turned(image)):
                ImageOps.exif_transpose(image, in_place=True)
            return _to_array(_to_eight_bits(image), image_format)
    except _DAMAGED as error:
        raise _image_error(file_name, error) from error


def read_image_size(file_name: str) -> tuple[int, int]:
    """(height, width) of the upright image, from the head of the file; no pixel is decoded.

    Raises:
        ImageError: the file is missing or no image; the message names it.
    """
    _let_pillow_read(MAX_PIXELS)
    try:
        with PathManager.open(file_name, "rb") as file, Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            return (width, height) if _is_turned(image) else (height, width)
    except _DAMAGED as error:
        raise _image_error(file_name, error) from error


def _let_pillow_read(max_pixels: int) -> None:
    """Keep Pillow's own limit, one for the whole process, from coming before ours.

    Pillow warns above its limit and refuses twice as much, also by sizes inside of a file that
    `_check_pixels` does not see, such as those of a TIFF's tiles. So it is raised, not removed.
    """
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)


def _check_pixels(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ValueError(
            f"it has {width} x {height} pixels, more than INPUT.MAX_PIXELS ({max_pixels}); shrink "
            "it, boxes included, or raise the key if the image is to be trusted"
        )


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
        reason = f"it is in none of the formats {', '.join(FORMATS)}"
    if isinstance(error, Image.DecompressionBombError):
        reason = f"it is far beyond INPUT.MAX_PIXELS: {error}"
    return ImageError(f"Cannot read the image {file_name}: {reason}")
