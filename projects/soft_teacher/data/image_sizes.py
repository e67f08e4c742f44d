"""Sizes of image files, read once and kept in a cache.

The cache is one JSON file for each folder of images, below $XDG_CACHE_HOME/soft_teacher (or
~/.cache/soft_teacher). An entry holds for as long as the file has its length and time of change.
"""

import hashlib
import json
import logging
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from iopath.common.file_io import file_lock
from portalocker.exceptions import LockException
from tqdm import tqdm

from soft_teacher.data.image_files import ImageError, read_image_size

logger = logging.getLogger(__name__)

# Reading the head of a file is waiting for the disk or the network.
_NUM_THREADS = 16

Size = tuple[int, int]


def image_sizes(file_names: list[str]) -> dict[str, Size | None]:
    """Sizes of image files.

    Processes that ask for the same images at once wait for each other; the first one reads.

    Args:
        file_names: paths of files.

    Returns:
        path -> (height, width) of the upright image; None for a file that cannot be read.
    """
    by_folder = defaultdict(list)
    for name in file_names:
        by_folder[os.path.dirname(os.path.abspath(name))].append(name)
    sizes = {}
    for folder, names in by_folder.items():
        sizes.update(_sizes_of_folder(folder, names))
    return sizes


def cache_file(folder: str) -> Path:
    """The file that holds the known sizes of the images in a folder."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    digest = hashlib.sha256(os.path.realpath(folder).encode("utf-8", "surrogateescape")).hexdigest()
    return Path(base) / "soft_teacher" / "image_sizes" / f"{digest[:32]}.json"


def _sizes_of_folder(folder: str, names: list[str]) -> dict[str, Size | None]:
    path, sizes = cache_file(folder), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(path)):
            known = _read_cache(path)
            sizes = _known_or_read(names, known)
            _write_cache(path, known)
    # A cache is a convenience: a folder that cannot be written, a full disk or a file system
    # without locks must not keep anybody from training.
    except (OSError, LockException) as error:
        logger.warning("Image sizes are not cached: %s", error)
    return _known_or_read(names, {}) if sizes is None else sizes


def _known_or_read(names: list[str], known: dict[str, list[int]]) -> dict[str, Size | None]:
    """Look sizes up by file name, stamp included; what is new is read and added to `known`."""
    stamps = {name: _stamp(name) for name in names}
    sizes, unknown = {}, []
    for name, stamp in stamps.items():
        entry = known.get(os.path.basename(name))
        if stamp is not None and entry is not None and entry[:2] == stamp:
            sizes[name] = (entry[2], entry[3])
        else:
            unknown.append(name)
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        read = pool.map(_read_or_none, unknown)
        shown = tqdm(read, "Reading image sizes", len(unknown), disable=len(unknown) < 1000)
        sizes.update(zip(unknown, shown, strict=True))
    for name in unknown:
        if sizes[name] is not None:
            known[os.path.basename(name)] = [*stamps[name], *sizes[name]]
    return sizes


def _stamp(name: str) -> list[int] | None:
    try:
        stat = os.stat(name)
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _read_or_none(name: str) -> Size | None:
    try:
        return read_image_size(name)
    except ImageError:
        return None


def _read_cache(path: Path) -> dict[str, list[int]]:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _write_cache(path: Path, known: dict[str, list[int]]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(known))
    os.replace(temporary, path)
