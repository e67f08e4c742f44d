"""Splits of a COCO file into few labeled and many unlabeled images (sec. 4.1)."""

import json
from pathlib import Path
from typing import Any

import numpy as np


def choose_labeled(image_ids: list[int], percent: float, fold: int) -> set[int]:
    """Draw the ids of the images that keep their labels, without replacement.

    Depends on the set of ids, not on their order. For one fold, the choice of a smaller
    percentage is part of the choice of a larger one.

    Args:
        image_ids: ids of all images, at least two.
        percent: share of labeled images, above 0 and below 100.
        fold: seeds the choice.
    """
    if not 0 < percent < 100:
        raise ValueError(f"The percentage is {percent}; it must lie between 0 and 100.")
    ordered = sorted(set(image_ids))
    if len(ordered) != len(image_ids) or len(ordered) < 2:
        raise ValueError(
            f"The file lists {len(image_ids)} images with {len(ordered)} different ids; splitting "
            "needs two images or more, each with its own id."
        )
    count = max(1, int(percent * len(ordered) / 100))
    # The legacy generator is frozen: the same split on every machine and version of numpy.
    chosen = np.random.RandomState(fold).permutation(len(ordered))[:count]
    return {ordered[i] for i in chosen}


def split_annotations(
    data: dict[str, Any], labeled_ids: set[int], keep_annotations: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Divide the content of a COCO file.

    Args:
        data: content of a COCO file. Left unchanged.
        labeled_ids: ids of the images of the first part.
        keep_annotations: whether the unlabeled part keeps its annotations, to measure pseudo
            labels by.

    Returns:
        The labeled and the unlabeled part, both with all categories and whatever else the file
        holds beside images and annotations.
    """
    images, annotations = data["images"], data["annotations"]
    labeled = {
        **data,
        "images": [image for image in images if image["id"] in labeled_ids],
        "annotations": [item for item in annotations if item["image_id"] in labeled_ids],
    }
    hidden = [item for item in annotations if item["image_id"] not in labeled_ids]
    unlabeled = {
        **data,
        "images": [image for image in images if image["id"] not in labeled_ids],
        "annotations": hidden if keep_annotations else [],
    }
    return labeled, unlabeled


def split_paths(folder: Path, stem: str, percent: float, fold: int) -> tuple[Path, Path]:
    """Files of the labeled and the unlabeled part, named as the official code names them."""
    name = f"{stem}.{fold}@{percent:g}"
    return folder / f"{name}.json", folder / f"{name}-unlabeled.json"


def write_split(
    data: dict[str, Any],
    folder: Path,
    stem: str,
    percent: float,
    fold: int,
    keep_annotations: bool = False,
) -> dict[Path, int]:
    """Draw one split and write its two files into an existing folder.

    Returns:
        The number of images by file, the labeled file first.
    """
    labeled_ids = choose_labeled([image["id"] for image in data["images"]], percent, fold)
    parts = split_annotations(data, labeled_ids, keep_annotations)
    counts = {}
    for path, part in zip(split_paths(folder, stem, percent, fold), parts, strict=True):
        path.write_text(json.dumps(part))
        counts[path] = len(part["images"])
    return counts
