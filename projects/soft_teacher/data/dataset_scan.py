"""Decoding every image file of a set in parallel, and what is found out on the way."""

import hashlib
import io
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from multiprocessing.connection import wait
from typing import Any, NamedTuple

from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image
from tqdm import tqdm

from soft_teacher.data.image_files import FORMATS, MAX_PIXELS, ImageError, read_image
from soft_teacher.data.image_sizes import Size

TURNED = "turned"
"""An image that was turned or mirrored as its EXIF tag says."""
LEFT_LYING = "left lying"
"""An image whose EXIF tag was passed over, since its stated size is the one in the file."""

# Files that one message to a worker is about.
_CHUNK = 8


class ScannedImage(NamedTuple):
    """What is kept of an image: little, since there may be hundreds of thousands.

    Attributes:
        size: (height, width) as training reads it; None if it cannot.
        mode: Pillow's name for the kind of pixels in the file, such as "RGB".
        exif: `TURNED`, `LEFT_LYING`, or "" for an image that lies upright.
        digest: SHA-256 of the file's bytes; empty if the image cannot be read.
        error: why it cannot be read, naming the file; "" if it can.
    """

    size: Size | None
    mode: str
    exif: str
    digest: bytes
    error: str


def scan_image(
    file_name: str, stated_size: Size | None = None, max_pixels: int = MAX_PIXELS
) -> ScannedImage:
    """Decode an image as training does, and look at its file.

    Args:
        file_name: path of the file.
        stated_size: (height, width) from an annotation file, if boxes were drawn for it.
        max_pixels: INPUT.MAX_PIXELS.
    """
    with warnings.catch_warnings():
        # Pillow warns of images that the report lists anyway.
        warnings.simplefilter("ignore")
        try:
            size = read_image(file_name, "RGB", stated_size, max_pixels).shape[:2]
        except ImageError as error:
            return ScannedImage(None, "", "", b"", str(error))
        with PathManager.open(file_name, "rb") as file:
            content = file.read()
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            exif = _effect_of_exif(image, size)
            return ScannedImage(size, image.mode, exif, hashlib.sha256(content).digest(), "")


@contextmanager
def scan_pool(num_workers: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that `scan_images` works with; None, for one worker, is this process.

    The workers start from a fresh process, so nothing is inherited that they do not need.
    """
    if num_workers == 1:
        yield None
        return
    context = multiprocessing.get_context("forkserver")
    # What takes seconds to import is then imported once for all workers.
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def scan_images(
    records: Sequence[dict[str, Any]],
    pool: ProcessPoolExecutor | None,
    title: str,
    boxes_count: bool,
    max_pixels: int = MAX_PIXELS,
) -> list[ScannedImage]:
    """Scan the images of a set, with a progress bar.

    Args:
        records: dicts of `file_name` and, where known, `height` and `width`.
        pool: of `scan_pool`.
        title: of the progress bar.
        boxes_count: whether the set's boxes matter, and with them the sizes that it states.
        max_pixels: INPUT.MAX_PIXELS.

    Returns:
        One result a record, in their order, whatever the number of workers.

    Raises:
        BrokenProcessPool: a worker died, most likely for lack of memory.
    """
    names = [record["file_name"] for record in records]
    sizes = [stated_size(record) if boxes_count else None for record in records]
    if pool is None:
        results = map(scan_image, names, sizes, repeat(max_pixels))
    else:
        results = pool.map(scan_image, names, sizes, repeat(max_pixels), chunksize=_CHUNK)
    return list(tqdm(results, title, len(names), unit=" images"))


def stated_size(record: dict[str, Any]) -> Size | None:
    """(height, width) in the annotation file, if it has them."""
    return (record["height"], record["width"]) if "height" in record else None


def _effect_of_exif(image: Image.Image, size: Size) -> str:
    if image.getexif().get(ExifTags.Base.Orientation, 1) not in range(2, 9):
        return ""
    quarter_turn = image.getexif()[ExifTags.Base.Orientation] >= 5
    width, height = image.size
    return LEFT_LYING if quarter_turn and width != height and size == (height, width) else TURNED


def _start_worker() -> None:
    # Ctrl-C goes to all processes; the main one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A main process that is killed cannot tell its workers to end."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
