"""A trained detector labels images: what it finds is written as a COCO file with scores.

The work goes batch by batch into a journal beside the file, from which a run that was cut off goes
on. Batches are the same wherever it was cut off, and with them the padding and the result.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.modeling import DatasetMapperTTA
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager
from torch import nn
from tqdm import tqdm

from soft_teacher.data import ImageMapper
from soft_teacher.data.image_files import ImageError
from soft_teacher.data.worker_signals import let_workers_outlive_stop_signals
from soft_teacher.engine.atomic_file import open_atomically
from soft_teacher.engine.evaluation import original_images
from soft_teacher.engine.journal import Journal
from soft_teacher.engine.tta import RCNNWithTTA

Record = dict[str, Any]


@dataclass(frozen=True)
class LabelingOptions:
    """How images are labeled.

    Attributes:
        score_threshold: boxes with a score above it are written.
        batch_size: images of one forward pass, padded to a common size; scales and mirror images
            have passes of their own, for one image after the other.
        scales: shorter sides, in pixels, at which an image is looked at, one after the other; ()
            is INPUT.MIN_SIZE_TEST alone.
        flip: whether it is looked at in the mirror too.
    """

    score_threshold: float
    batch_size: int
    scales: tuple[int, ...] = ()
    flip: bool = False


@dataclass
class LabelingSummary:
    """What came out.

    Attributes:
        num_images: images that could be read.
        num_boxes: boxes in them.
        unreadable: names of the images that could not be read.
    """

    num_images: int
    num_boxes: int
    unreadable: list[str]


def fingerprint(
    cfg: CfgNode,
    model: str,
    options: LabelingOptions,
    images: list[dict[str, Any]],
    categories: list[dict[str, Any]],
) -> str:
    """A digest of all that decides what a labeling gives.

    Args:
        cfg: the config, MODEL.WEIGHTS included; of that file the content counts.
        model: which of its models is used.
        options: how images are labeled.
        images: `id` and `file_name` as in the file that is written.
        categories: of that file.
    """
    settings = cfg.MODEL.clone()
    settings.defrost()
    settings.WEIGHTS = weights_digest(cfg.MODEL.WEIGHTS)
    keys = ("FORMAT", "MIN_SIZE_TEST", "MAX_SIZE_TEST", "MAX_PIXELS")
    facts = [
        *(settings.dump(), cfg.TEST.DETECTIONS_PER_IMAGE, cfg.TEST.AUG.MAX_SIZE),
        *([cfg.INPUT[key] for key in keys], model, asdict(options)),
        *(images, categories),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def weights_digest(file_name: str) -> str:
    """SHA-256 of a file of weights."""
    digest = hashlib.sha256()
    with PathManager.open(file_name, "rb") as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def label_images(
    cfg: CfgNode,
    model: nn.Module,
    records: list[Record],
    options: LabelingOptions,
    journal: Journal,
) -> None:
    """Label the images that a journal lacks, with a progress bar.

    Args:
        cfg: the config.
        model: the detector.
        records: of all images. Of stated sizes none is looked at: as in training on unlabeled
            images, what counts is the upright image.
        options: how images are labeled.
        journal: gets an entry a batch: for each of its images None, if it cannot be read, or its
            `height`, `width` and `objects`, the detections in Detectron2's COCO format.
    """
    detect, mapper = _detector(cfg, model.eval(), options)
    done = min(journal.num_entries * options.batch_size, len(records))
    loader = build_detection_test_loader(
        [{key: record[key] for key in ("file_name", "image_id")} for record in records],
        mapper=_ReadOrReport(mapper),
        sampler=range(done, len(records)),
        batch_size=options.batch_size,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    let_workers_outlive_stop_signals(loader)
    with tqdm(total=len(records), initial=done, desc="Labeling", unit=" images") as progress:
        for batch in loader:
            for view in batch:
                if "error" in view:
                    progress.write(f"{view['error']}. It is left out")
            journal.append(_label_batch(detect, batch, options.score_threshold))
            progress.update(len(batch))


class _ReadOrReport:
    """A mapper that gives the error of an image which cannot be read."""

    def __init__(self, mapper: Callable[[Record], dict[str, Any]]):
        self._mapper = mapper

    def __call__(self, record: Record) -> dict[str, Any]:
        try:
            return self._mapper(record)
        except ImageError as error:
            return {"error": str(error)}


def _detector(
    cfg: CfgNode, model: nn.Module, options: LabelingOptions
) -> tuple[Callable[[list[dict]], list[dict]], ImageMapper]:
    """What detects in views, and what makes views of records."""
    if not options.scales and not options.flip:
        return model, ImageMapper(cfg)
    views = DatasetMapperTTA(
        min_sizes=list(options.scales) or [cfg.INPUT.MIN_SIZE_TEST],
        max_size=cfg.TEST.AUG.MAX_SIZE if options.scales else cfg.INPUT.MAX_SIZE_TEST,
        flip=options.flip,
    )
    return RCNNWithTTA(cfg, model, views, averages_boxes=True), original_images(cfg)


@torch.no_grad()
def _label_batch(
    detect: Callable[[list[dict]], list[dict]], batch: list[dict], score_threshold: float
) -> list[dict | None]:
    readable = [view for view in batch if "error" not in view]
    outputs = iter(detect(readable) if readable else [])
    return [
        None
        if "error" in view
        else {
            "height": view["height"],
            "width": view["width"],
            "objects": _objects(next(outputs)["instances"], score_threshold),
        }
        for view in batch
    ]


def _objects(instances: Instances, score_threshold: float) -> list[dict[str, Any]]:
    boxes = Instances(
        instances.image_size,
        pred_boxes=instances.pred_boxes,
        scores=instances.scores,
        pred_classes=instances.pred_classes,
    )
    chosen = (boxes.scores > score_threshold) & boxes.pred_boxes.nonempty()
    return instances_to_coco_json(boxes[chosen].to("cpu"), None)


def write_pseudo_labels(
    output: Path,
    journal: Journal,
    images: list[dict[str, Any]],
    categories: list[dict[str, Any]],
    info: dict[str, Any],
) -> LabelingSummary:
    """Write what a journal holds as a COCO file, in the order of the images.

    The file has its name only when it is complete. Unreadable images stand in its
    `info.unreadable_images` alone.

    Args:
        output: where to.
        journal: of all images.
        images: `id` and `file_name` of each.
        categories: one a class, in the model's order.
        info: goes into the file.
    """
    found = [
        {**image, "height": result["height"], "width": result["width"]}
        for image, result in _results(images, journal)
        if result is not None
    ]
    readable = {image["id"] for image in found}
    unreadable = [image["file_name"] for image in images if image["id"] not in readable]
    number = 0
    with open_atomically(str(output), "w") as file:
        head = {
            "info": {**info, "unreadable_images": unreadable},
            "categories": categories,
            "images": found,
        }
        file.write(f'{json.dumps(head)[:-1]}, "annotations": [')
        for number, annotation in enumerate(_annotations(images, categories, journal), 1):
            file.write(", " if number > 1 else "")
            file.write(json.dumps({"id": number, **annotation}))
        file.write("]}\n")
    return LabelingSummary(len(found), number, unreadable)


def _results(
    images: list[dict[str, Any]], journal: Journal
) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    return zip(images, (result for batch in journal for result in batch), strict=True)


def _annotations(
    images: list[dict[str, Any]], categories: list[dict[str, Any]], journal: Journal
) -> Iterator[dict[str, Any]]:
    for image, result in _results(images, journal):
        for x in result["objects"] if result is not None else ():
            yield {
                "image_id": image["id"],
                "category_id": categories[x["category_id"]]["id"],
                "bbox": x["bbox"],
                "area": x["bbox"][2] * x["bbox"][3],
                "iscrowd": 0,
                "score": x["score"],
            }
