"""Numbers of a data set: classes, objects and their boxes, sizes of images."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from soft_teacher.data.image_sizes import Size

SMALL_AREA, LARGE_AREA = 32**2, 96**2
"""COCO's limits between small, medium and large objects, in square pixels of the original."""

# Ratios of width to height, two bins an octave; what lies beyond is counted at the ends.
_ASPECT_EDGES = 2.0 ** np.arange(-4, 4.5, 0.5)
# Sides in pixels, two bins an octave.
_SIDE_EDGES = 2.0 ** np.arange(0, 12.5, 0.5)
_MOST_BINS = 40


@dataclass(frozen=True)
class Histogram:
    """Counts of values between edges.

    Attributes:
        edges: one more than counts; the last one belongs to the last bin.
        counts: values in each bin.
    """

    edges: list[float]
    counts: list[int]


@dataclass(frozen=True)
class ClassCount:
    """One class.

    Attributes:
        name: of the class.
        objects: without crowds.
        images: with at least one object.
        small, medium, large: objects by the area of their box.
    """

    name: str
    objects: int
    images: int
    small: int
    medium: int
    large: int


@dataclass(frozen=True)
class ObjectStatistics:
    """The objects of a set.

    Attributes:
        objects: without crowds.
        crowds: annotations that stand for many objects.
        classes: in the order of the class indices.
        objects_per_image: images by their number of objects.
        box_sides: objects by the square root of their box's area, in pixels.
        box_aspects: objects by width / height of their box.
    """

    objects: int
    crowds: int
    classes: list[ClassCount]
    objects_per_image: Histogram
    box_sides: Histogram
    box_aspects: Histogram


@dataclass(frozen=True)
class ImageStatistics:
    """The readable images of a set.

    Attributes:
        longer_sides, shorter_sides: images by their sides in pixels, both with the same edges.
        aspects: images by width / height.
    """

    longer_sides: Histogram
    shorter_sides: Histogram
    aspects: Histogram


def object_statistics(records: list[dict[str, Any]], classes: list[str]) -> ObjectStatistics:
    """Count the objects of records in Detectron2's dataset format.

    Args:
        records: with `annotations`.
        classes: names that `category_id` counts in.
    """
    class_ids, image_ids, widths, heights = array("l"), array("l"), array("d"), array("d")
    crowds = 0
    for number, record in enumerate(records):
        for annotation in record["annotations"]:
            if annotation.get("iscrowd", 0):
                crowds += 1
                continue
            box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYWH_ABS)
            class_ids.append(annotation["category_id"])
            image_ids.append(number)
            widths.append(box[2])
            heights.append(box[3])
    width, height = np.array(widths), np.array(heights)
    per_image = np.bincount(np.array(image_ids, int), minlength=len(records))
    return ObjectStatistics(
        objects=len(class_ids),
        crowds=crowds,
        classes=_class_counts(
            np.array(class_ids, int), np.array(image_ids, int), width * height, classes
        ),
        # A bin of one number has it in its middle.
        objects_per_image=_histogram(per_image, _integer_edges(per_image) - 0.5),
        box_sides=_histogram(np.sqrt(width * height), _SIDE_EDGES),
        box_aspects=_histogram(width / height, _ASPECT_EDGES),
    )


def image_statistics(sizes: Iterable[Size]) -> ImageStatistics:
    """Count images by their (height, width)."""
    height, width = np.array([*sizes], float).reshape(-1, 2).T
    longer, shorter = np.maximum(height, width), np.minimum(height, width)
    edges = _integer_edges(longer)
    return ImageStatistics(
        _histogram(longer, edges),
        _histogram(shorter, edges),
        _histogram(width / height, _ASPECT_EDGES),
    )


def _class_counts(
    class_ids: np.ndarray, image_ids: np.ndarray, areas: np.ndarray, classes: list[str]
) -> list[ClassCount]:
    counts = []
    for index, name in enumerate(classes):
        of_class = class_ids == index
        area = areas[of_class]
        small, large = int((area < SMALL_AREA).sum()), int((area >= LARGE_AREA).sum())
        counts.append(
            ClassCount(
                name=name,
                objects=len(area),
                images=len(np.unique(image_ids[of_class])),
                small=small,
                medium=len(area) - small - large,
                large=large,
            )
        )
    return counts


def _integer_edges(values: np.ndarray) -> np.ndarray:
    """Bins from 0 that are as wide as a whole number and end beyond the largest value."""
    largest = int(values.max()) if len(values) else 0
    step = largest // _MOST_BINS + 1
    return np.arange(0, largest + 1 + step, step)


def _histogram(values: np.ndarray, edges: np.ndarray) -> Histogram:
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    return Histogram(edges.tolist(), counts.tolist())
