"""Ground truth and predictions of several models on the same images, as pictures.

Objects and predictions are entries in COCO's format; no model runs here.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, BoxMode
from torch import Tensor

from soft_teacher.analysis.drawing import as_jpeg, draw_boxes, enlarge, side_by_side, with_caption
from soft_teacher.analysis.matching import match_by_score, overlaps_of_class
from soft_teacher.data.image_files import read_image
from soft_teacher.data.image_paths import image_path

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
    """An image, uint8 (H, W, 3), RGB, with what it shows."""

    title: str
    caption: str
    image: np.ndarray

    @property
    def jpeg(self) -> bytes:
        return as_jpeg(self.image)


@dataclass(frozen=True)
class Comparison:
    """One image: the ground truth first, then each model's predictions."""

    file_name: str
    pictures: list[Picture]

    def sheet(self) -> np.ndarray:
        """The pictures side by side with their captions, uint8 (H, W, 3), RGB."""
        columns = [with_caption(x.image, f"{x.title}: {x.caption}") for x in self.pictures]
        return with_caption(side_by_side(columns), self.file_name)


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
        path = image_path(str(image_root), image["file_name"], str(annotations))
        photo = read_image(path, "RGB", (image["height"], image["width"]))
        objects = [
            x
            for x in truth["annotations"]
            if x["image_id"] == image["id"] and not x.get("iscrowd", 0)
        ]
        of_image = {
            title: [x for x in results if x["image_id"] == image["id"]]
            for title, results in found.items()
        }
        comparisons.append(
            draw_comparison(image["file_name"], photo, objects, of_image, names, min_score)
        )
    return comparisons


def draw_comparison(
    file_name: str,
    photo: np.ndarray,
    objects: list[dict],
    predictions: dict[str, list[dict]],
    names: dict[int, str],
    min_score: float,
) -> Comparison:
    """Draw one image.

    Args:
        file_name: of the image.
        photo: uint8 (H, W, 3), RGB.
        objects: true ones, with `bbox` (xywh in pixels of the photo) and `category_id`.
        predictions: title -> predictions, with `score` as well.
        names: category id -> name.
        min_score: only predictions above it are drawn.
    """
    pictures = [_draw_truth(photo, objects, names)]
    for title, results in predictions.items():
        chosen = [x for x in results if x["score"] > min_score]
        pictures.append(_draw_predictions(title, photo, chosen, objects, names))
    return Comparison(file_name, pictures)


def judge_predictions(predictions: list[dict], objects: list[dict]) -> list[bool]:
    """Which predictions are right, as COCO's AP50 counts them.

    A prediction is right if it overlaps an object of its class by at least half; each object
    counts for one prediction only, the highest scores choose first.

    Args:
        predictions: of one image, with `bbox` (xywh), `category_id` and `score`.
        objects: true ones of the same image, with `bbox` and `category_id`.
    """
    overlaps = overlaps_of_class(
        Boxes(_xyxy(predictions)),
        _categories(predictions),
        Boxes(_xyxy(objects)),
        _categories(objects),
    )
    scores = torch.tensor([x["score"] for x in predictions])
    return (match_by_score(overlaps, scores) >= 0).tolist()


def _draw_truth(photo: np.ndarray, objects: list[dict], names: dict[int, str]) -> Picture:
    captions = [names[x["category_id"]] for x in objects]
    image = _draw(photo, objects, captions, [TRUE_COLOR] * len(objects))
    return Picture("Ground truth", f"{len(objects)} objects", image)


def _draw_predictions(
    title: str,
    photo: np.ndarray,
    predictions: list[dict],
    objects: list[dict],
    names: dict[int, str],
) -> Picture:
    right = judge_predictions(predictions, objects)
    captions = [f"{names[x['category_id']]} {x['score']:.0%}" for x in predictions]
    image = _draw(photo, predictions, captions, [RIGHT_COLOR if x else WRONG_COLOR for x in right])
    wrong = len(right) - sum(right)
    return Picture(title, f"{sum(right)} of {len(objects)} found, {wrong} wrong", image)


def _draw(
    photo: np.ndarray, boxes: list[dict[str, Any]], captions: list[str], colors: list[tuple]
) -> np.ndarray:
    enlarged, corners = enlarge(photo, _xyxy(boxes))
    return draw_boxes(enlarged, corners, captions, colors, bold=True)


def _xyxy(entries: list[dict]) -> Tensor:
    """Boxes (R, 4) of COCO entries."""
    boxes = torch.tensor([x["bbox"] for x in entries], dtype=torch.float32).reshape(-1, 4)
    return BoxMode.convert(boxes, BoxMode.XYWH_ABS, BoxMode.XYXY_ABS)


def _categories(entries: list[dict]) -> Tensor:
    """Category ids (R,) of COCO entries."""
    return torch.tensor([x["category_id"] for x in entries], dtype=torch.int64)
