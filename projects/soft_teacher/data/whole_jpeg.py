"""Decoding of JPEG files that are surely whole, by OpenCV, with the pixels that Pillow gives.

OpenCV decodes straight into the array that is wanted, but it takes a truncated file, or one whose
scan breaks off at a foreign marker, for an image with gray in the missing part. So only files are
given to it in which that cannot happen; whatever is less usual is left to Pillow.
"""

import re

import cv2
import numpy as np

JPEG_START = b"\xff\xd8"
"""The first bytes of every JPEG file."""

_START_OF_SCAN = 0xDA
_END = b"\xff\xd9"
# In a scan a byte 255 is followed by 0; the only markers inside are those of restarts.
_MARKER_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")
# Flags of OpenCV by the factor that libjpeg makes each side shorter while it decodes.
_FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}
REDUCTIONS = tuple(_FLAGS)
"""Factors by which a JPEG image can be made smaller while it is decoded."""


def decode_whole_jpeg(
    content: bytes, size: tuple[int, int], image_format: str, reduction: int = 1
) -> np.ndarray | None:
    """Decode a color JPEG as it lies in its file, if it is whole and has one scan.

    Args:
        content: of the file.
        size: (height, width) by the head of the file.
        image_format: "BGR" or "RGB".
        reduction: one of REDUCTIONS that divides both sides.

    Returns:
        (height / reduction, width / reduction, 3) uint8; or None if the file is not whole, has
        several scans, or OpenCV does not decode it.
    """
    if not _is_whole(content):
        return None
    flags = _FLAGS[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        # OpenCV has limits of its own to the number of pixels.
        return None
    if pixels is None or pixels.shape[:2] != (size[0] // reduction, size[1] // reduction):
        return None
    return pixels if image_format == "BGR" else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _is_whole(content: bytes) -> bool:
    """Whether the first scan is followed by the end of the image, and that by nothing."""
    start = _scan_start(content)
    found = None if start is None else _MARKER_AFTER_SCAN.search(content, start)
    return found is not None and found.group() == _END and found.end() == len(content)


def _scan_start(content: bytes) -> int | None:
    """Where the data of the first scan begins; None if the segments before it are damaged."""
    place = len(JPEG_START)
    while content[place : place + 1] == b"\xff" and place + 4 <= len(content):
        marker = content[place + 1]
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
        if marker == _START_OF_SCAN:
            return place
    return None
