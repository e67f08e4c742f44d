"""Pictures of what training sees: augmented images with boxes in their views' frames.

The images come through the loaders of training, so they are those that it sees first.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.structures import BitMasks, Boxes, PolygonMasks
from PIL import Image
from torch import Tensor

from soft_teacher.analysis.drawing import draw_boxes, side_by_side, view_to_rgb, with_caption
from soft_teacher.data import (
    build_labeled_loader,
    build_unlabeled_loader,
    resolve_dataset_names,
    unlabeled_ground_truth,
)
from soft_teacher.modeling.view_geometry import project_boxes, view_to_view

# Longer side of a picture, in pixels, whatever the size of the view.
SIDE = 560
# Boxes without known objects: so many rows and columns, each box this share of its cell.
GRID = 3
GRID_SHARE = 0.7
# What is counted in captions, for one and for several.
OBJECTS = ("object", "objects")
REFERENCE_BOXES = ("reference box", "reference boxes")
# Easy to tell apart on photographs, RGB in 0-1; one for each cell of the grid.
PALETTE = (
    (1.00, 0.30, 0.30),
    (0.25, 0.85, 0.35),
    (0.30, 0.65, 1.00),
    (1.00, 0.85, 0.15),
    (0.90, 0.40, 1.00),
    (0.15, 0.90, 0.90),
    (1.00, 0.60, 0.15),
    (1.00, 0.60, 0.80),
    (0.70, 0.85, 0.10),
)


@dataclass(frozen=True)
class ViewPicture:
    """One view of an image.

    Attributes:
        title: which view.
        caption: its size and what is drawn.
        image: uint8 (H, W, 3), RGB.
    """

    title: str
    caption: str
    image: np.ndarray


@dataclass(frozen=True)
class SamplePicture:
    """All views of one image; `file_name` is that of its record."""

    file_name: str
    views: list[ViewPicture]

    def sheet(self) -> np.ndarray:
        """The views side by side with their captions, uint8 (H, W, 3), RGB."""
        views = [with_caption(x.image, f"{x.title}: {x.caption}") for x in self.views]
        return with_caption(side_by_side(views), self.file_name)


@dataclass(frozen=True)
class NamedBoxes:
    """Boxes of one image and what they are called in all of its views.

    Attributes:
        boxes: float32 (R, 4), xyxy, in pixels of the original image.
        labels: R captions.
        kind: what they are, `OBJECTS` or `REFERENCE_BOXES`.
    """

    boxes: Tensor
    labels: list[str]
    kind: tuple[str, str]


def draw_labeled_samples(cfg: CfgNode, count: int) -> list[SamplePicture]:
    """The first labeled images of a training, with boxes, class names and, if used, masks.

    Args:
        cfg: config of the training.
        count: number of images, at least 1; they may be more than the set has.

    Raises:
        ValueError: a key of the config does not fit, see `build_labeled_loader`.
    """
    samples = _first_samples(build_labeled_loader(cfg), count)
    names = class_names(cfg)
    return [_draw_labeled(view, names, cfg.INPUT.FORMAT) for view in samples]


def draw_unlabeled_samples(cfg: CfgNode, count: int) -> list[SamplePicture]:
    """The first unlabeled images of a training, each as its weak and its strong view.

    Boxes are the objects where they are known, a grid where they are not; each has the same
    number and color in both views.

    Args:
        cfg: config of the training.
        count: number of images, at least 1; they may be more than the set has.

    Raises:
        ValueError: a key of the config does not fit, see `build_unlabeled_loader`.
    """
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty; name the labeled set that gives the classes.")
    samples = _first_samples(build_unlabeled_loader(cfg), count)
    truth = unlabeled_ground_truth(cfg)
    names = class_names(cfg) if truth else []
    pictures = []
    for sample in samples:
        known = truth.get(sample["weak"]["file_name"])
        size = sample["weak"]["height"], sample["weak"]["width"]
        named = reference_boxes(size) if known is None else true_boxes(known, names, size)
        views = sample["weak"], sample["strong"]
        outline = cfg.SOFT_TEACHER.PSEUDO_LABELS.OUTLINE
        pictures.append(draw_pair(*views, named, cfg.INPUT.FORMAT, outline))
    return pictures


def class_names(cfg: CfgNode) -> list[str]:
    """Names of the classes, from the first set that states them once the sets are loaded."""
    for name in chain(*resolve_dataset_names(cfg)):
        names = MetadataCatalog.get(name).get("thing_classes")
        if names is not None:
            return names
    raise ValueError(
        "No set of DATASETS.TRAIN or DATASETS.UNLABELED states its classes; set thing_classes in "
        "the metadata that it is registered with."
    )


def true_boxes(
    annotations: list[dict[str, Any]], names: Sequence[str], size: tuple[int, int]
) -> NamedBoxes:
    """Known objects of an image, numbered, crowds left out.

    Args:
        annotations: in Detectron2's dataset format, original frame.
        names: of the classes.
        size: (height, width) of the original.
    """
    keys = ("bbox", "bbox_mode", "category_id")
    objects = [{key: x[key] for key in keys} for x in annotations if not x.get("iscrowd", 0)]
    instances = annotations_to_instances(objects, size)
    labels = [
        f"{number}: {names[label]}" for number, label in enumerate(instances.gt_classes.tolist(), 1)
    ]
    return NamedBoxes(instances.gt_boxes.tensor, labels, OBJECTS)


def reference_boxes(size: tuple[int, int]) -> NamedBoxes:
    """A grid of boxes, numbered row by row, for an image of (height, width)."""
    height, width = size
    start = torch.arange(GRID) + (1 - GRID_SHARE) / 2
    y, x = (corner.flatten() for corner in torch.meshgrid(start, start, indexing="ij"))
    cells = torch.stack([x, y, x + GRID_SHARE, y + GRID_SHARE], dim=1)
    boxes = cells * torch.tensor([width, height, width, height]) / GRID
    labels = [str(number) for number in range(1, len(boxes) + 1)]
    return NamedBoxes(boxes, labels, REFERENCE_BOXES)


def carry_boxes(
    boxes: Tensor, weak: dict[str, Any], strong: dict[str, Any], outline: str = "corners"
) -> list[Tensor]:
    """Carry boxes of the original to the weak view, and on from there to the strong one.

    Args:
        boxes: (R, 4), xyxy, original frame.
        weak, strong: the views.
        outline: SOFT_TEACHER.PSEUDO_LABELS.OUTLINE.

    Returns:
        (R, 4) in the weak and in the strong view, clipped to them.
    """
    carried, source = [], np.eye(3)
    for view in (weak, strong):
        matrix = view_to_view(source, view["matrix"], boxes.device)
        boxes = project_boxes(boxes, matrix, tuple(view["image"].shape[1:]), outline)
        carried.append(boxes)
        source = view["matrix"]
    return carried


def describe_view(view: dict[str, Any]) -> str:
    """Size in pixels, scale against the original, and whether the view is a mirror image."""
    height, width = view["image"].shape[1:]
    # The root of the area's scale: turns and the shears of the strong view do not change it.
    area = float(np.linalg.det(view["matrix"][:2, :2]))
    flipped = ", flipped" if area < 0 else ""
    return f"{width} x {height} px, scale {math.sqrt(abs(area)):.2f}{flipped}"


def draw_pair(
    weak: dict[str, Any],
    strong: dict[str, Any],
    named: NamedBoxes,
    image_format: str,
    outline: str = "corners",
) -> SamplePicture:
    """Draw the same boxes on both views of an image.

    Args:
        weak, strong: the views.
        named: boxes of the original.
        image_format: INPUT.FORMAT.
        outline: SOFT_TEACHER.PSEUDO_LABELS.OUTLINE.
    """
    pictures = []
    carried = carry_boxes(named.boxes, weak, strong, outline)
    for title, view, boxes in zip(
        ("Weak view", "Strong view"), (weak, strong), carried, strict=True
    ):
        image = draw_view(view, boxes, named.labels, image_format)
        lost = len(boxes) - int(Boxes(boxes).nonempty().sum())
        caption = f"{describe_view(view)}; {_count(len(boxes), named.kind)}"
        if lost:
            caption += f", {lost} of them outside"
        pictures.append(ViewPicture(title, caption, image))
    return SamplePicture(weak["file_name"], pictures)


def draw_view(
    view: dict[str, Any],
    boxes: Tensor,
    labels: list[str],
    image_format: str,
    masks: PolygonMasks | BitMasks | None = None,
) -> np.ndarray:
    """Draw boxes on a view, resized so that its longer side is `SIDE`.

    Boxes without area, which lie outside the view, are left out; the others keep the color of
    their place in the list.

    Args:
        view: with `image`.
        boxes: (R, 4), xyxy, in the view's frame.
        labels: R captions.
        image_format: INPUT.FORMAT.
        masks: R masks in the view's frame.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    resize = _resize_to_side(*view["image"].shape[1:])
    visible = Boxes(boxes).nonempty().nonzero().squeeze(1).tolist()
    if masks is not None:
        masks = _resize_masks(masks[visible], resize)
    return draw_boxes(
        resize.apply_image(view_to_rgb(view, image_format)),
        torch.from_numpy(resize.apply_box(boxes[visible].numpy())),
        [labels[i] for i in visible],
        [PALETTE[i % len(PALETTE)] for i in visible],
        masks,
        bold=True,
    )


def _first_samples(loader: Any, count: int) -> list[dict[str, Any]]:
    return list(islice(chain.from_iterable(loader), count))


def _draw_labeled(view: dict[str, Any], names: Sequence[str], image_format: str) -> SamplePicture:
    instances = view["instances"]
    labels = [names[x] for x in instances.gt_classes.tolist()]
    masks = instances.gt_masks if instances.has("gt_masks") else None
    image = draw_view(view, instances.gt_boxes.tensor, labels, image_format, masks=masks)
    classes = [name if n == 1 else f"{name} ({n})" for name, n in Counter(labels).items()]
    caption = f"{describe_view(view)}; {_count(len(labels), OBJECTS)}"
    if classes:
        caption += f": {', '.join(classes)}"
    return SamplePicture(view["file_name"], [ViewPicture("Labeled view", caption, image)])


def _resize_to_side(height: int, width: int) -> T.ResizeTransform:
    scale = SIDE / max(height, width)
    new_size = (max(1, round(scale * x)) for x in (height, width))
    return T.ResizeTransform(height, width, *new_size, Image.Resampling.BICUBIC)


def _resize_masks(masks: PolygonMasks | BitMasks, resize: T.ResizeTransform) -> list:
    """Masks as Detectron2's `Visualizer` takes them."""
    if isinstance(masks, BitMasks):
        return [resize.apply_segmentation(x.numpy().astype(np.uint8)) for x in masks.tensor]
    return [
        [points.reshape(-1) for points in resize.apply_polygons([x.reshape(-1, 2) for x in shape])]
        for shape in masks.polygons
    ]


def _count(number: int, kind: tuple[str, str]) -> str:
    return f"{number} {kind[number != 1]}"
