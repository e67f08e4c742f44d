"""A trained detector finds objects in images and videos, for people to use and to look at."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.data import transforms as T
from detectron2.data.build import trivial_batch_collator
from detectron2.data.detection_utils import convert_image_to_rgb, convert_PIL_to_numpy
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from soft_teacher.analysis.detection_pictures import as_photo
from soft_teacher.data.augmentation import evaluation_augmentations
from soft_teacher.data.image_files import ImageError, read_image
from soft_teacher.data.mapper import make_view
from soft_teacher.data.video_files import video_frames
from soft_teacher.data.worker_signals import let_workers_outlive_stop_signals

View = dict[str, Any]


@dataclass(frozen=True)
class PredictionOptions:
    """How objects are looked for.

    Attributes:
        score_threshold: detections with a score above it are kept.
        batch_size: images of one forward pass, padded to a common size; 1 is what evaluation does.
        pictures: whether pictures are wanted.
    """

    score_threshold: float
    batch_size: int
    pictures: bool


@dataclass(frozen=True)
class Detected:
    """An image in which a detector has looked for objects.

    Attributes:
        image_id: of the image.
        size: (height, width) of the upright image, whose frame the objects are in.
        objects: what was found, in COCO's format for results, with the model's class index as
            `category_id`; with run-length codes as `segmentation` if the model has masks.
        photo: uint8 (H, W, 3), RGB, the image to draw on, in any size; None if not wanted.
        error: why the image could not be read; "" if it was.
    """

    image_id: int
    size: tuple[int, int] = (0, 0)
    objects: tuple[dict[str, Any], ...] = ()
    photo: np.ndarray | None = None
    error: str = ""


class ViewMaker:
    """Makes of images what the models see in evaluation.

    Args:
        cfg: the config.
        photos: whether a view brings the image along, to draw on.
    """

    def __init__(self, cfg: CfgNode, photos: bool):
        self._augmentations = T.AugmentationList(evaluation_augmentations(cfg))
        self._format = cfg.INPUT.FORMAT
        self._max_pixels = cfg.INPUT.MAX_PIXELS
        self._photos = photos

    def __call__(self, record: dict[str, Any]) -> View:
        """The view of an image file, or, if it cannot be read, its `image_id` and the `error`."""
        try:
            image = read_image(record["file_name"], self._format, None, self._max_pixels)
        except ImageError as error:
            return {"image_id": record["image_id"], "error": str(error)}
        view = self._view(image, record)
        if self._photos:
            view["photo"] = as_photo(convert_image_to_rgb(image, self._format))
        return view

    def of_frame(self, frame: np.ndarray, record: dict[str, Any]) -> View:
        """The view of a frame of a video, uint8 (H, W, 3), BGR; its photo has the frame's size."""
        rgb = np.ascontiguousarray(frame[:, :, ::-1])
        view = self._view(convert_PIL_to_numpy(Image.fromarray(rgb), self._format), record)
        if self._photos:
            view["photo"] = rgb
        return view

    def _view(self, image: np.ndarray, record: dict[str, Any]) -> View:
        return make_view(image, record, self._augmentations)[0]


class _Frames(IterableDataset):
    """Views of the frames of a video, numbered from an id on."""

    def __init__(self, path: str, first_id: int, make_views: ViewMaker):
        self._path = path
        self._first_id = first_id
        self._make_views = make_views

    def __iter__(self) -> Iterator[View]:
        for image_id, frame in enumerate(video_frames(self._path), self._first_id):
            record = {"file_name": self._path, "image_id": image_id}
            yield self._make_views.of_frame(frame, record)


def detect_in_images(
    cfg: CfgNode, model: nn.Module, paths: list[str], first_id: int, options: PredictionOptions
) -> Iterator[Detected]:
    """Look for objects in image files.

    Args:
        cfg: the config.
        model: the detector, in eval mode.
        paths: of the images.
        first_id: of the first image; the others are numbered on.
        options: how to look.

    Yields:
        One item for each path, in their order.
    """
    loader = build_detection_test_loader(
        [{"file_name": path, "image_id": i} for i, path in enumerate(paths, first_id)],
        mapper=ViewMaker(cfg, options.pictures),
        batch_size=options.batch_size,
        num_workers=min(cfg.DATALOADER.NUM_WORKERS, len(paths)),
    )
    return _detect(model, loader, options)


def detect_in_video(
    cfg: CfgNode, model: nn.Module, path: str, first_id: int, options: PredictionOptions
) -> Iterator[Detected]:
    """Look for objects in each frame of a video, as `detect_in_images`.

    Raises:
        VideoError: there is no frame.
    """
    loader = DataLoader(
        _Frames(path, first_id, ViewMaker(cfg, options.pictures)),
        batch_size=options.batch_size,
        # Frames have to be decoded one after the other.
        num_workers=min(cfg.DATALOADER.NUM_WORKERS, 1),
        collate_fn=trivial_batch_collator,
    )
    return _detect(model, loader, options)


def _detect(model: nn.Module, loader: DataLoader, options: PredictionOptions) -> Iterator[Detected]:
    let_workers_outlive_stop_signals(loader)
    for views in loader:
        yield from _detect_in_batch(model, views, options.score_threshold)


def _detect_in_batch(
    model: nn.Module, views: list[View], score_threshold: float
) -> Iterable[Detected]:
    readable = [view for view in views if "error" not in view]
    # Not around the loop: a generator would leave gradients off for whoever reads it.
    with torch.no_grad():
        outputs = iter(model(readable) if readable else [])
    return [
        Detected(view["image_id"], error=view["error"])
        if "error" in view
        else Detected(
            view["image_id"],
            (view["height"], view["width"]),
            _objects(next(outputs)["instances"], view["image_id"], score_threshold),
            view.get("photo"),
        )
        for view in views
    ]


def _objects(
    instances: Instances, image_id: int, score_threshold: float
) -> tuple[dict[str, Any], ...]:
    chosen = (instances.scores > score_threshold) & instances.pred_boxes.nonempty()
    return tuple(instances_to_coco_json(instances[chosen].to("cpu"), image_id))
