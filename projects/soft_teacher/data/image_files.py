"""Reading image files of every kind that people have, and their sizes."""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import TracebackType
from typing import BinaryIO

import cv2
import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from soft_teacher.data.whole_jpeg import JPEG_START, decode_whole_jpeg

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
# What turns an image upright, by its EXIF orientation; 1 and other values leave it as it lies.
_TURNS = {
    2: partial(cv2.flip, flipCode=1),
    3: partial(cv2.rotate, rotateCode=cv2.ROTATE_180),
    4: partial(cv2.flip, flipCode=0),
    5: cv2.transpose,
    6: partial(cv2.rotate, rotateCode=cv2.ROTATE_90_CLOCKWISE),
    7: lambda pixels: cv2.rotate(cv2.transpose(pixels), cv2.ROTATE_180),
    8: partial(cv2.rotate, rotateCode=cv2.ROTATE_90_COUNTERCLOCKWISE),
}

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
"""What is read, by Pillow's names. Its other formats are rarely met and little tested with bad
files, and for some of them (EPS) it starts another program."""

MAX_PIXELS = 200_000_000
"""Default of INPUT.MAX_PIXELS; an image of 12,000 x 12,000 has 144 million."""


class ImageError(OSError):
    """An image file that is missing, damaged, no image, or not the image that was described."""


class OpenedImage:
    """An open image file whose head has been read: its size is known, its pixels are not yet.

    Gray, palette, RGBA and CMYK images become color images, 16-bit ones keep their upper 8 bits.
    The image is turned upright by its EXIF tag. But if the stated size is that of the image as it
    lies in the file and not of the upright one, whoever stated it (and drew the boxes) saw the
    image without the tag, and it stays as it lies. A context manager, which closes the file.

    Args:
        file_name: path of the file.
        image_format: channels of the pixels, as for `detection_utils.read_image`.
        stated_size: (height, width) from an annotation file, if there is one.
        max_pixels: INPUT.MAX_PIXELS. An image of more, by the head of its file, is not decoded.

    Attributes:
        size: (height, width) of the image, upright unless the stated size speaks against it.

    Raises:
        ImageError: the file is missing or no image; the message names it.
    """

    def __init__(
        self,
        file_name: str,
        image_format: str,
        stated_size: tuple[int, int] | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._file_name = file_name
        self._format = image_format
        _let_pillow_read(max_pixels)
        with ExitStack() as stack, _named(file_name):
            file = stack.enter_context(PathManager.open(file_name, "rb"))
            # A JPEG file is read at once, others as far as Pillow needs them.
            start = file.read(len(JPEG_START))
            self._jpeg = start + file.read() if start == JPEG_START else b""
            file.seek(0)
            source = io.BytesIO(self._jpeg) if self._jpeg else file
            self._image = stack.enter_context(_open(source))
            _check_pixels(self._image, max_pixels)
            orientation = _orientation_to_do(self._image, max_pixels)
            width, height = self._image.size
            is_turned = orientation in _QUARTER_TURNS
            lies_as_stated = is_turned and stated_size == (height, width) and width != height
            self._orientation = None if lies_as_stated else orientation
            self.size = (width, height) if is_turned and not lies_as_stated else (height, width)
            self._to_close = stack.pop_all()

    def __enter__(self) -> "OpenedImage":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._to_close.close()

    def decode(self, reduction: int = 1) -> np.ndarray:
        """Decode the image to 8 bits; to be called once.

        Args:
            reduction: one of `whole_jpeg.REDUCTIONS` that divides both sides; a JPEG image may
                come as many times smaller, others do not.

        Returns:
            (H, W, C) uint8, of `size` or smaller.

        Raises:
            ImageError: the file cannot be read; the message names it.
        """
        with _named(self._file_name):
            pixels = self._decode_by_opencv(reduction)
            return self._decode_by_pillow(reduction) if pixels is None else pixels

    def _decode_by_opencv(self, reduction: int) -> np.ndarray | None:
        image = self._image
        is_color = image.mode == "RGB" and self._format in ("BGR", "RGB")
        if image.format != "JPEG" or not is_color:
            return None
        pixels = decode_whole_jpeg(self._jpeg, image.size[::-1], self._format, reduction)
        turn = _TURNS.get(self._orientation)
        return pixels if pixels is None or turn is None else turn(pixels)

    def _decode_by_pillow(self, reduction: int) -> np.ndarray:
        image = self._image
        if reduction > 1 and image.format == "JPEG":
            image.draft(None, tuple(side // reduction for side in image.size))
        _load(image)
        if self._orientation in _TURNS:
            ImageOps.exif_transpose(image, in_place=True)
        return _to_array(_to_eight_bits(image), self._format)


def read_image(
    file_name: str,
    image_format: str,
    stated_size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Decode an image file to 8 bits, (H, W, C) uint8; see `OpenedImage`.

    Raises:
        ImageError: the file cannot be read; the message names it.
    """
    with OpenedImage(file_name, image_format, stated_size, max_pixels) as file:
        return file.decode()


def read_index_image(file_name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode an image file whose pixels are numbers from 0 to 255, such as labels.

    Of an image with a palette these are the indices, not the gray levels of its colors.

    Args:
        file_name: path of the file.
        max_pixels: INPUT.MAX_PIXELS. An image of more, by the head of its file, is not decoded.

    Returns:
        (H, W) uint8.

    Raises:
        ImageError: the file cannot be read or has several channels; the message names it.
    """
    _let_pillow_read(max_pixels)
    with (
        _named(file_name),
        PathManager.open(file_name, "rb") as file,
        _open(file) as image,
    ):
        _check_pixels(image, max_pixels)
        if image.mode not in ("L", "P"):
            raise ValueError(f"its pixels are no single bytes, but of the kind {image.mode!r}")
        return np.asarray(image)


def read_image_size(file_name: str) -> tuple[int, int]:
    """(height, width) of the upright image, from the head of the file.

    No pixel is decoded, but those of a TIFF image that its tag turns.

    Raises:
        ImageError: the file is missing or no image; the message names it.
    """
    _let_pillow_read(MAX_PIXELS)
    with (
        _named(file_name),
        PathManager.open(file_name, "rb") as file,
        _open(file) as image,
    ):
        is_turned = _orientation_to_do(image, MAX_PIXELS) in _QUARTER_TURNS
        width, height = image.size
        return (width, height) if is_turned else (height, width)


@contextmanager
def _named(file_name: str) -> Iterator[None]:
    """Let what Pillow raises inside the block be an ImageError that names the file."""
    try:
        yield
    except _DAMAGED as error:
        raise _image_error(file_name, error) from error


def _open(file: BinaryIO) -> Image.Image:
    with _seldom_damaged():
        return Image.open(file, formats=FORMATS)


def _load(image: Image.Image) -> None:
    with _seldom_damaged():
        image.load()


@contextmanager
def _seldom_damaged() -> Iterator[None]:
    """Around Pillow alone: few damaged files give errors that elsewhere are a program's mistakes.

    Of 71,000 files these were a TIFF's offset of the wrong type and a length in a JPEG 2000 file.
    """
    try:
        yield
    except (TypeError, MemoryError) as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


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


def _orientation_to_do(image: Image.Image, max_pixels: int) -> int | None:
    """The EXIF orientation of an image, unless Pillow turns the image itself."""
    # Of some formats the tags come behind the pixels, which are decoded for them.
    with _seldom_damaged():
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    if image.format == "TIFF" and orientation in _TURNS:
        # It is turned when it is loaded; the size before that depends on Pillow's version.
        _check_pixels(image, max_pixels)
        _load(image)
        return None
    return orientation


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
