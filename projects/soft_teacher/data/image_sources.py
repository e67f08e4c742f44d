"""Images without an annotation file: a folder, a glob pattern or a text list of paths."""

import glob
import os
from pathlib import Path

from soft_teacher.data.image_sizes import image_sizes

# What Pillow reads and people keep photographs in.
IMAGE_SUFFIXES = frozenset(
    f".{name}"
    for name in ("bmp", "gif", "jpe", "jpeg", "jpg", "pgm", "png", "ppm", "tif", "tiff", "webp")
)
_LIST_SUFFIXES = (".txt", ".lst")


def find_images(source: str) -> list[str]:
    """Paths of the images of a source, in an order that no file system decides.

    Args:
        source: a folder, searched recursively; a glob pattern ("**" crosses folders); or a text
            file with one path a line, relative to the folder that it lies in. Lines that are
            empty or begin with "#" are passed over, and a path that comes twice is taken once.

    Returns:
        Paths, sorted by their parts; those of a list in the order of the list.

    Raises:
        ValueError: there is no such source, or no image in it.
    """
    if os.path.isdir(source):
        paths = _below(source)
    elif source.endswith(_LIST_SUFFIXES) and os.path.isfile(source):
        paths = _listed(source)
    elif glob.has_magic(source):
        paths = _sorted(p for p in glob.glob(source, recursive=True) if _is_image_name(p))
    else:
        raise ValueError(
            f"DATASETS.CUSTOM names {source!r} as a source of images, but there is no such "
            "folder, glob pattern or text list (.txt); check the path."
        )
    if not paths:
        raise ValueError(
            f"DATASETS.CUSTOM names {source!r} as a source of images, but it has none; files "
            f"ending in {', '.join(sorted(IMAGE_SUFFIXES))} count, in lists every line."
        )
    return paths


def load_image_source(source: str) -> list[dict]:
    """Records of the images of a source.

    Returns:
        Dicts of `file_name`, `image_id` (1, 2, ...) and, where the file can be read, `height` and
        `width`.
    """
    paths = find_images(source)
    sizes = image_sizes(paths)
    records = []
    for image_id, path in enumerate(paths, start=1):
        record = {"file_name": path, "image_id": image_id}
        if sizes[path] is not None:
            record["height"], record["width"] = sizes[path]
        records.append(record)
    return records


def _below(folder: str) -> list[str]:
    found = []
    for parent, _, names in os.walk(folder, followlinks=True):
        found.extend(os.path.join(parent, name) for name in names if _is_image_name(name))
    return _sorted(found)


def _listed(path: str) -> list[str]:
    try:
        # Some editors put a mark of the encoding at the start.
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"The list of images {path} is not in UTF-8 ({error.reason} at byte {error.start}); "
            "save it in that encoding."
        ) from error
    names = (line.strip() for line in lines)
    root = os.path.dirname(path)
    return list(dict.fromkeys(os.path.join(root, x) for x in names if x and x[0] != "#"))


def _sorted(paths) -> list[str]:
    return sorted(paths, key=lambda path: Path(path).parts)


def _is_image_name(path: str) -> bool:
    # Other systems leave files such as "._photo.jpg" that are no images.
    name = os.path.basename(path)
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")
