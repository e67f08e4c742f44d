"""Annotations of a COCO file, good and bad ones: what is kept, what is left out, and why."""

import math
from typing import Any

from detectron2.structures import BoxMode
from pycocotools import mask as mask_util

from soft_teacher.data.problems import Problems

Record = dict[str, Any]

# Boxes may reach beyond the image by this many pixels before it is worth a word.
_BORDER_TOLERANCE = 1.0


def clean_annotation(
    annotation: dict, record: Record | None, id_to_class: dict[int, int], problems: Problems
) -> dict[str, Any] | None:
    """The annotation in Detectron2's format; None if it is left out, which is counted."""
    reason = _reason_to_drop(annotation, record, id_to_class)
    if reason is not None:
        problems.note(f"{reason}, left out", _place(annotation))
        return None
    box = annotation["bbox"]
    if _reaches_beyond(box, record):
        problems.note("boxes that reach beyond their image, clipped", _place(annotation))
    cleaned = {
        "iscrowd": int(bool(annotation.get("iscrowd", 0))),
        "bbox": box,
        "category_id": id_to_class[annotation["category_id"]],
    }
    segmentation = annotation.get("segmentation")
    if segmentation and not isinstance(segmentation, bool):
        cleaned["segmentation"] = _clean_segmentation(segmentation)
    cleaned["bbox_mode"] = BoxMode.XYWH_ABS
    return cleaned


def _reason_to_drop(
    annotation: dict, record: Record | None, id_to_class: dict[int, int]
) -> str | None:
    if record is None:
        return "annotations of images that the file does not list"
    if as_key(annotation.get("category_id")) not in id_to_class:
        return "annotations of categories that the file does not list"
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        return "boxes that are not four finite numbers"
    if box[2] <= 0 or box[3] <= 0:
        return "boxes without area"
    if box[0] + box[2] <= 0 or box[1] + box[3] <= 0:
        return "boxes outside their image"
    if "height" in record and (box[0] >= record["width"] or box[1] >= record["height"]):
        return "boxes outside their image"
    segmentation = annotation.get("segmentation")
    if segmentation is False or (segmentation and not _is_valid_segmentation(segmentation)):
        return "objects whose mask has no polygon of three points and is no run-length code"
    return None


def score_of(annotation: dict, json_file: str) -> float:
    """The score of a pseudo label.

    Raises:
        ValueError: there is none.
    """
    score = annotation.get("score")
    if not _is_finite(score):
        raise ValueError(
            f"{json_file}: {_place(annotation)} has the score {score!r}, so this is no file of "
            "pseudo labels. Take one that tools/pseudo_label.py wrote; ground truth of unlabeled "
            "images is never trained on."
        )
    return score


def note_repeated_ids(annotations: list[dict], problems: Problems) -> None:
    """Count annotations whose id an earlier one has."""
    seen = set()
    for annotation in annotations:
        key = as_key(annotation.get("id"))
        if key is not None and key in seen:
            problems.note("annotations with the id of another one, kept", _place(annotation))
        seen.add(key)


def is_evaluated_as_meant(annotation: dict) -> bool:
    """Whether pycocotools can evaluate by this annotation.

    It keeps the id of what a detection was matched with, and takes 0 for "with nothing".
    """
    number = annotation.get("id")
    return (
        type(number) is int
        and number != 0
        and _is_finite(annotation.get("area"))
        and annotation.get("iscrowd") in (0, 1)
    )


def as_key(value: Any) -> int | str | None:
    """An id, or None for what cannot be one."""
    return value if isinstance(value, int | str) else None


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _reaches_beyond(box: list[float], record: Record) -> bool:
    if "height" not in record:
        return False
    return (
        min(box[0], box[1]) < -_BORDER_TOLERANCE
        or box[0] + box[2] > record["width"] + _BORDER_TOLERANCE
        or box[1] + box[3] > record["height"] + _BORDER_TOLERANCE
    )


def drop_segmentation(content: dict) -> dict:
    """While reading: of a segmentation keep only whether it is valid."""
    segmentation = content.get("segmentation")
    if segmentation:
        content["segmentation"] = _is_valid_segmentation(segmentation)
    return content


def _is_valid_segmentation(segmentation: Any) -> bool:
    """Whether it is a run-length code or has at least one polygon of three points."""
    if isinstance(segmentation, bool):
        return segmentation
    if isinstance(segmentation, dict):
        return _is_run_length_code(segmentation)
    return isinstance(segmentation, list) and any(map(_is_polygon, segmentation))


def _is_run_length_code(segmentation: dict) -> bool:
    """Whether it has the form of one; only pycocotools knows whether a compressed one is whole."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(map(is_size, size)):
        return False
    if isinstance(counts, list):
        return all(isinstance(x, int) and x >= 0 for x in counts) and sum(counts) == math.prod(size)
    return isinstance(counts, str)


def _is_polygon(points: Any) -> bool:
    return isinstance(points, list) and len(points) >= 6 and len(points) % 2 == 0


def _clean_segmentation(segmentation: dict | list) -> dict | list:
    """Compressed run-length code, or the valid polygons."""
    if isinstance(segmentation, list):
        return list(filter(_is_polygon, segmentation))
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, *segmentation["size"])
    return segmentation


def _place(annotation: dict) -> str:
    return f"annotation {annotation.get('id')} of image {annotation.get('image_id')}"


def is_size(value: Any) -> bool:
    """Whether it can be a side of an image, in pixels."""
    return isinstance(value, int) and value > 0
