"""A labeled set with one specimen of everything that can be wrong with images and annotations."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 40, 30
NON_ASCII = "größe_名.png"
EVIL = "<script>alert(1)<b>.png"
# EXIF's number for an image that is to be turned by a quarter, and the tag that holds it.
ORIENTATION, QUARTER = 0x0112, 6
CAN_LOCK_FILES = os.geteuid() != 0

# What pixels are there, and in which file.
MODES = {
    "gray.png": "L",
    "palette.png": "P",
    "alpha.png": "RGBA",
    "cmyk.jpg": "CMYK",
    "sixteen.png": "I;16",
}
UNREADABLE = ("empty.jpg", "truncated.jpg", "text.jpg")
READABLE = (
    "good.jpg",
    "copy.jpg",
    "turned.jpg",
    "lying.jpg",
    "dot.png",
    "resized.png",
    NON_ASCII,
    EVIL,
    *MODES,
)


def photo(width: int = WIDTH, height: int = HEIGHT, seed: int = 0) -> Image.Image:
    """An image like no other one of another seed."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_images(folder: Path) -> None:
    """Write one specimen of each kind; missing.jpg is not there."""
    photo().save(folder / "good.jpg")
    shutil.copy(folder / "good.jpg", folder / "copy.jpg")
    (folder / "empty.jpg").touch()
    (folder / "truncated.jpg").write_bytes((folder / "good.jpg").read_bytes()[:-300])
    (folder / "text.jpg").write_text("no image")
    for seed, (name, mode) in enumerate(MODES.items(), 10):
        image = photo(seed=seed)
        if mode == "I;16":
            image = Image.fromarray(np.asarray(image)[:, :, 0].astype(np.uint16) * 257)
        else:
            image = image.convert(mode)
        assert image.mode == mode
        image.save(folder / name)
    exif = Image.Exif()
    exif[ORIENTATION] = QUARTER
    for seed, name in enumerate(("turned.jpg", "lying.jpg"), 20):
        photo(seed=seed).save(folder / name, exif=exif)
    photo(1, 1, 30).save(folder / "dot.png")
    photo(WIDTH // 2, HEIGHT // 2, 31).save(folder / "resized.png")
    photo(seed=32).save(folder / NON_ASCII)
    photo(seed=33).save(folder / EVIL)
    if CAN_LOCK_FILES:
        photo(seed=34).save(folder / "locked.jpg")
        (folder / "locked.jpg").chmod(0)


def write_annotations(path: Path) -> None:
    """Annotate each of the images with one object, and add annotations that are bad."""
    names = ["missing.jpg", *UNREADABLE, *READABLE, *(["locked.jpg"] if CAN_LOCK_FILES else [])]
    sizes = {"dot.png": (1, 1), "turned.jpg": (HEIGHT, WIDTH)}
    images, annotations = [], []
    for i, name in enumerate(names, 1):
        width, height = sizes.get(name, (WIDTH, HEIGHT))
        images.append({"id": i, "file_name": name, "width": width, "height": height})
        annotations.append(_annotation(i, i, [0, 0, width, height]))
    good = names.index("good.jpg") + 1
    bad = [
        _annotation(101, good, [5, 5, 0, 4]),
        _annotation(102, good, [5, 5, 4, -1]),
        _annotation(103, good, [900, 5, 4, 4]),
        _annotation(104, good, [5, 5, 100, 4]),
        _annotation(105, good, [5, 5, "4", 4]),
        _annotation(106, 9999, [5, 5, 4, 4]),
        {**_annotation(107, good, [5, 5, 4, 4]), "category_id": 77},
        {**_annotation(108, good, [5, 5, 4, 4]), "segmentation": [[1, 2, 3, 4]]},
        {**_annotation(109, good, [5, 5, 4, 4]), "iscrowd": 1},
        _annotation(1, good, [5, 5, 4, 4]),
    ]
    images.append({"id": 500, "file_name": "gray.png", "width": WIDTH, "height": HEIGHT})
    content = {
        "images": images,
        "annotations": annotations + bad,
        "categories": [{"id": 1, "name": "thing"}, {"id": 2, "name": "<script>never"}],
    }
    path.write_text(json.dumps(content))


# Counts of the findings that these annotations give, by kind.
ANNOTATION_PROBLEMS = {
    "boxes without area, left out": 2,
    "boxes outside their image, left out": 1,
    "boxes that reach beyond their image, clipped": 1,
    "boxes that are not four finite numbers, left out": 1,
    "annotations of images that the file does not list, left out": 1,
    "annotations of categories that the file does not list, left out": 1,
    "objects whose mask has no polygon of three points and is no run-length code, left out": 1,
    "annotations with the id of another one, kept": 1,
}


def _annotation(number: int, image: int, box: list) -> dict:
    return {"id": number, "image_id": image, "category_id": 1, "bbox": box, "area": 1, "iscrowd": 0}
