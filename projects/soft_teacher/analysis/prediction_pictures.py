"""Ground truth and predictions of several models on the same images, as pictures.

Everything is read from files in COCO's format; no model runs.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode, pairwise_iou
from PIL import Image
from torch import Tensor

from soft_teacher.analysis.drawing import as_jpeg, draw_boxes, enlarge

TRUE_COLOR = (0.25, 0.7, 1.0)
RIGHT_COLOR = (0.2, 0.85, 0.25)
WRONG_COLOR = (1.0, 0.45, 0.1)
COLOR_MEANINGS = {
    "true box": TRUE_COLOR,
    "right: overlaps an object of its class by at least half": RIGHT_COLOR,
    "wrong": WRONG_COLOR,
}


@dataclass(frozen=True)
class Picture:
    """A JPEG file with what it shows."""

    title: str
    caption: str
    jpeg: bytes


@dataclass(frozen=True)
class Comparison:
    """One image: the ground truth first, then each model's predictions."""

    file_name: str
    pictures: list[Picture]


def draw_comparisons(
    annotations: Path,
    image_root: Path,
    predictions: dict[str, Path],
    num_images: int,
    min_score: float = 0.5,
) -> list[Comparison]:
    """Draw the first images of a set.

    Args:
        annotations: COCO file of the set.
        image_root: folder of its images.
        predictions: title -> file of results in COCO's format, boxes as xywh.
        num_images: images to draw, the first of the file: nobody picks them.
        min_score: only predictions above it are drawn.
    """
    truth = json.loads(annotations.read_text())
    names = {x["id"]: x["name"] for x in truth["categories"]}
    found = {title: json.loads(path.read_text()) for title, path in predictions.items()}
    comparisons = []
    for image in truth["images"][:num_images]:
        photo = Image.open(image_root / image["file_name"]).convert("RGB")
        objects = [
            x
            for x in truth["annotations"]
            if x["image_id"] == image["id"] and not x.get("iscrowd", 0)
        ]
        pictures = [_draw_truth(photo, objects, names)]
        for title, results in found.items():
            chosen = [x for x in results if x["image_id"] == image["id"] and x["score"] > min_score]
            pictures.append(_draw_predictions(title, photo, chosen, objects, names))
        comparisons.append(Comparison(image["file_name"], pictures))
    return comparisons


def judge_predictions(predictions: list[dict], objects: list[dict]) -> list[bool]:
    """Which predictions are right, as COCO's AP50 counts them.

    A prediction is right if it overlaps an object of its class by at least half; each object
    counts for one prediction only, the highest scores choose first.

    Args:
        predictions: of one image, with `bbox` (xywh), `category_id` and `score`.
        objects: true ones of the same image, with `bbox` and `category_id`.
    """
    right = [False] * len(predictions)
    if not predictions or not objects:
        return right
    overlaps = pairwise_iou(Boxes(_xyxy(predictions)), Boxes(_xyxy(objects)))
    taken = [False] * len(objects)
    for i in sorted(range(len(predictions)), key=lambda i: -predictions[i]["score"]):
        free = [
            j
            for j, x in enumerate(objects)
            if not taken[j] and x["category_id"] == predictions[i]["category_id"]
        ]
        best = max(free, key=lambda j: float(overlaps[i, j]), default=None)
        if best is not None and overlaps[i, best] >= 0.5:
            right[i] = taken[best] = True
    return right


def _draw_truth(photo: Image.Image, objects: list[dict], names: dict[int, str]) -> Picture:
    captions = [names[x["category_id"]] for x in objects]
    jpeg = _draw(photo, objects, captions, [TRUE_COLOR] * len(objects))
    return Picture("Ground truth", f"{len(objects)} objects", jpeg)


def _draw_predictions(
    title: str,
    photo: Image.Image,
    predictions: list[dict],
    objects: list[dict],
    names: dict[int, str],
) -> Picture:
    right = judge_predictions(predictions, objects)
    captions = [f"{names[x['category_id']]} {x['score']:.0%}" for x in predictions]
    jpeg = _draw(photo, predictions, captions, [RIGHT_COLOR if x else WRONG_COLOR for x in right])
    wrong = len(right) - sum(right)
    return Picture(title, f"{sum(right)} of {len(objects)} found, {wrong} wrong", jpeg)


def _draw(
    photo: Image.Image, boxes: list[dict[str, Any]], captions: list[str], colors: list[tuple]
) -> bytes:
    enlarged, corners = enlarge(np.asarray(photo), _xyxy(boxes))
    return as_jpeg(draw_boxes(enlarged, corners, captions, colors, bold=True))


def _xyxy(entries: list[dict]) -> Tensor:
    """Boxes (R, 4) of COCO entries."""
    boxes = torch.tensor([x["bbox"] for x in entries], dtype=torch.float32).reshape(-1, 4)
    return BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)
