"""A data set of COCO's size and make-up, in its format; the objects are made up."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from soft_teacher.engine.benchmark.photos import write_photos

# Share of images without an object, as in train2017.
EMPTY_IMAGES = 0.009
CROWDS = 0.012
# Chance that an object has one more polygon.
MORE_POLYGONS = 0.1
# Of the vertices of a polygon: mean and shape of a gamma distribution, and the least number.
MEAN_VERTICES, VERTICES_SHAPE, LEAST_VERTICES = 27.0, 2.0, 4
# Mean number of runs in a crowd's mask.
MEAN_RUNS = 300
# How unequal images are in their number of objects, and categories in theirs: shapes of gamma
# distributions.
OBJECTS_SHAPE, CATEGORIES_SHAPE = 1.2, 0.6
LABELED, UNLABELED = "labeled", "unlabeled"


@dataclass(frozen=True)
class Simulation:
    """What to write; the defaults are the numbers of train2017 and unlabeled2017.

    Attributes:
        labeled: labeled images.
        objects: objects in them, crowds included.
        unlabeled: unlabeled images.
        pool: different image files; all others are hard links to one of these.
        seed: decides everything.
    """

    labeled: int = 118_287
    objects: int = 860_001
    unlabeled: int = 123_403
    pool: int = 28
    seed: int = 0


@dataclass(frozen=True)
class SimulatedSet:
    """One set: its annotation file and the folder of its images."""

    json_file: Path
    image_root: Path


def write_simulation(folder: Path, simulation: Simulation) -> dict[str, SimulatedSet]:
    """Write a labeled and an unlabeled set.

    Args:
        folder: made if it is not there. A simulation that lies there already is kept if it is the
            same, and written anew if not.

    Returns:
        The sets, by `LABELED` and `UNLABELED`. Unlabeled images come without categories and
        annotations, as in COCO's image_info files.
    """
    sets = {
        name: SimulatedSet(folder / f"{name}.json", folder / name) for name in (LABELED, UNLABELED)
    }
    description = folder / "simulation.json"
    wanted = json.dumps(vars(simulation))
    if description.is_file() and description.read_text() == wanted:
        return sets
    description.unlink(missing_ok=True)
    rng = np.random.default_rng(simulation.seed)
    photos = write_photos(folder / "pool", simulation.pool, simulation.seed)
    images = _link_images(sets[LABELED].image_root, simulation.labeled, photos, 0)
    others = _link_images(
        sets[UNLABELED].image_root, simulation.unlabeled, photos, simulation.labeled
    )
    _write_labeled(sets[LABELED].json_file, images, simulation.objects, rng)
    sets[UNLABELED].json_file.write_text(json.dumps({"info": {}, "images": others}))
    description.write_text(wanted)
    return sets


def _link_images(
    folder: Path, count: int, photos: list[dict[str, Any]], first_id: int
) -> list[dict[str, Any]]:
    """Hard links to the photographs, in turn; returns the entries of "images"."""
    folder.mkdir(parents=True, exist_ok=True)
    images = []
    for image_id in range(first_id + 1, first_id + count + 1):
        photo = photos[image_id % len(photos)]
        name = f"{image_id:012d}.jpg"
        path = folder / name
        path.unlink(missing_ok=True)
        os.link(photo["file_name"], path)
        images.append(
            {
                "license": 1,
                "file_name": name,
                "coco_url": f"http://images.cocodataset.org/{folder.name}/{name}",
                "height": photo["height"],
                "width": photo["width"],
                "date_captured": "2013-11-14 11:18:45",
                "id": image_id,
            }
        )
    return images


def _write_labeled(
    file: Path, images: list[dict[str, Any]], num_objects: int, rng: np.random.Generator
) -> None:
    """Write a file in COCO's format, object by object, for all of them take gigabytes."""
    categories = [
        {"supercategory": "thing", "id": category["id"], "name": category["name"]}
        for category in COCO_CATEGORIES
        if category["isthing"]
    ]
    head = {"info": {}, "licenses": [], "images": images, "categories": categories}
    ids = [category["id"] for category in categories]
    with file.open("w") as stream:
        stream.write(json.dumps(head)[:-1] + ', "annotations": [')
        for index, annotation in enumerate(_annotations(images, num_objects, ids, rng)):
            stream.write((",\n" if index else "\n") + json.dumps(annotation))
        stream.write("]}")


def _annotations(
    images: list[dict[str, Any]],
    num_objects: int,
    category_ids: list[int],
    rng: np.random.Generator,
) -> Iterator[dict[str, Any]]:
    popularity = rng.gamma(OBJECTS_SHAPE, size=len(images))
    popularity[rng.permutation(len(images))[: int(EMPTY_IMAGES * len(images))]] = 0.0
    counts = rng.multinomial(num_objects, popularity / popularity.sum())
    shares = rng.gamma(CATEGORIES_SHAPE, size=len(category_ids))
    categories = rng.choice(category_ids, num_objects, p=shares / shares.sum())
    crowds = rng.random(num_objects) < CROWDS
    owners = np.repeat(np.arange(len(images)), counts)
    for index, (owner, category, crowd) in enumerate(
        zip(owners.tolist(), categories.tolist(), crowds.tolist(), strict=True)
    ):
        yield {
            "id": index + 1,
            "image_id": images[owner]["id"],
            "category_id": category,
            "iscrowd": int(crowd),
            **_shape(images[owner]["width"], images[owner]["height"], crowd, rng),
        }


def _shape(width: int, height: int, crowd: bool, rng: np.random.Generator) -> dict[str, Any]:
    """Box, area and segmentation of an object: polygons, or a mask in runs for a crowd."""
    # Squares of uniform numbers: most objects are small.
    box_width, box_height = 4 + rng.random(2) ** 2 * (width - 8, height - 8)
    x, y = rng.random(2) * (width - box_width, height - box_height)
    if crowd:
        segmentation = _runs(width, height, rng)
    else:
        num_polygons = rng.geometric(1 - MORE_POLYGONS)
        segmentation = [_polygon(x, y, box_width, box_height, rng) for _ in range(num_polygons)]
    return {
        "bbox": [round(float(value), 2) for value in (x, y, box_width, box_height)],
        "area": round(float(box_width * box_height * 0.6), 4),
        "segmentation": segmentation,
    }


def _polygon(
    x: float, y: float, width: float, height: float, rng: np.random.Generator
) -> list[float]:
    """A polygon around the box's center: x0, y0, x1, y1, ..."""
    more = rng.gamma(VERTICES_SHAPE, (MEAN_VERTICES - LEAST_VERTICES) / VERTICES_SHAPE)
    count = LEAST_VERTICES + round(more)
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    radii = rng.uniform(0.6, 1.0, count)
    xs = x + width / 2 * (1 + radii * np.cos(angles))
    ys = y + height / 2 * (1 + radii * np.sin(angles))
    return np.stack([xs, ys], axis=1).round(2).ravel().tolist()


def _runs(width: int, height: int, rng: np.random.Generator) -> dict[str, Any]:
    """An uncompressed run-length mask of the whole image."""
    num_runs = min(max(2, rng.poisson(MEAN_RUNS)), width * height)
    cuts = np.sort(rng.choice(width * height - 1, num_runs - 1, replace=False)) + 1
    counts = np.diff(cuts, prepend=0, append=width * height)
    return {"counts": counts.tolist(), "size": [height, width]}
