"""JPEG files like COCO's, made of the photographs that scikit-image and scikit-learn ship."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# Photographs with a suffix are scikit-learn's.
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "china.jpg", "flower.jpg")
# (width, height) of COCO's images, the frequent ones more than once.
SIZES = ((640, 480), (640, 480), (480, 640), (640, 427), (427, 640), (640, 426), (500, 375))
# Side of a crop, as a fraction of the largest that fits.
CROP = (0.7, 1.0)
# Noise of a sensor (standard deviation, gray levels) and JPEG quality. With both, files have about
# the 160 kB of COCO's, and take as long to decode.
NOISE = 8.0
QUALITY = 95


def write_photos(folder: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """Write images of COCO's sizes as JPEG files.

    Args:
        folder: made if it is not there.
        count: number of images.
        seed: decides crops and noise.

    Returns:
        Dicts of `file_name` (with the folder), `height`, `width` and `image_id`.

    Raises:
        ImportError: a package that carries the photographs is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    photos = _load_photos()
    rng = np.random.default_rng(seed)
    records = []
    for index in range(count):
        width, height = SIZES[index % len(SIZES)]
        image = _take(photos[index % len(photos)], width, height, rng)
        file_name = folder / f"photo_{index:04d}.jpg"
        image.save(file_name, quality=QUALITY)
        records.append(
            {"file_name": str(file_name), "height": height, "width": width, "image_id": index}
        )
    return records


def _take(photo: Image.Image, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A random crop of a photograph, resized, with noise."""
    scale = rng.uniform(*CROP) * min(photo.width / width, photo.height / height)
    left = rng.uniform(0, photo.width - scale * width)
    top = rng.uniform(0, photo.height - scale * height)
    box = (left, top, left + scale * width, top + scale * height)
    crop = photo.resize((width, height), Image.Resampling.LANCZOS, box=box)
    noisy = np.asarray(crop) + rng.normal(0, NOISE, (height, width, 3))
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


def _load_photos() -> list[Image.Image]:
    try:
        from skimage import data
        from sklearn.datasets import load_sample_image
    except ImportError as error:
        raise ImportError(
            "Photographs to measure with come with scikit-image and scikit-learn: "
            'pip install -e ".[demo]" (or `make setup`); or name a folder of your own images.'
        ) from error
    pixels = [load_sample_image(x) if x.endswith(".jpg") else getattr(data, x)() for x in PHOTOS]
    return [Image.fromarray(photo).convert("RGB") for photo in pixels]
