"""Images of a set with ground truth, as models see them, for measurements after training."""

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.structures import Boxes, Instances
from torch import nn

from soft_teacher.data import (
    register_custom_datasets,
    unlabeled_ground_truth,
    unlabeled_records,
)
from soft_teacher.data.augmentation import weak_augmentations
from soft_teacher.data.coco_file import Record
from soft_teacher.data.datasets import check_num_classes, class_names
from soft_teacher.data.mapper import make_view, read_labeled_image
from soft_teacher.data.randomness import join_seeds, seeded_sample
from soft_teacher.modeling.view_geometry import project_boxes


def choose_model(models: dict[str, nn.Module], wanted: str) -> nn.Module:
    """A model of a file of weights, in eval mode.

    Args:
        models: what `engine.load_models` returns.
        wanted: "student" or "teacher". A file of one model, an exported one for example, has
            neither; its model is taken for both.
    """
    return (models[wanted] if wanted in models else models["model"]).eval()


def records_with_truth(cfg: CfgNode, names: tuple[str, ...]) -> list[Record]:
    """Records of sets in Detectron2's dataset format, with the annotations that are known.

    Args:
        cfg: the config; the classes are those of its first labeled set.
        names: of registered sets or sets in DATASETS.CUSTOM, labeled or not.

    Returns:
        The images of those sets that have annotations; empty if none has.

    Raises:
        ValueError: there is no such set, or its classes are not those of the model.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.UNLABELED = names
    register_custom_datasets(cfg)
    for name in names:
        if name.replace("{fold}", str(cfg.DATASETS.FOLD)) not in DatasetCatalog:
            raise ValueError(
                f"There is no set {name}; name one of DATASETS.CUSTOM or a built-in one."
            )
    truth = unlabeled_ground_truth(cfg)
    if not truth:
        return []
    classes = class_names(cfg)
    if classes is not None:
        check_num_classes(cfg, classes, ", ".join(cfg.DATASETS.TRAIN))
    return [
        {**record, "annotations": truth[record["file_name"]]}
        for record in unlabeled_records(cfg)
        if record["file_name"] in truth
    ]


def draw_records(records: list[Record], at_most: int | None, seed: int) -> list[tuple[Record, int]]:
    """Some images of a set, in its order, with a seed for what is random about each.

    Args:
        records: of the set.
        at_most: how many to draw; None for all.
        seed: of the draw, and of the images' seeds, which do not depend on `at_most`.

    Returns:
        (record, sample seed, see `data.randomness`).
    """
    generator = np.random.default_rng(seed)
    seeds = [join_seeds(*map(int, x)) for x in generator.integers(2**32, size=(len(records), 2))]
    chosen = range(len(records))
    if at_most is not None and at_most < len(records):
        chosen = sorted(generator.choice(len(records), at_most, replace=False).tolist())
    return [(records[i], seeds[i]) for i in chosen]


def weak_view(record: Record, sample_seed: int, cfg: CfgNode) -> dict[str, Any]:
    """The view that the teacher labels in training, see `data.mapper.make_view`.

    Raises:
        ImageError: the file cannot be read or has another size than the record states.
    """
    image = read_labeled_image(record, cfg.INPUT.FORMAT, cfg.INPUT.MAX_PIXELS)
    with seeded_sample(sample_seed):
        return make_view(image, record, T.AugmentationList(weak_augmentations(cfg)))[0]


def true_objects(record: Record, size: tuple[int, int]) -> Instances:
    """`gt_boxes` (xyxy, original frame) and `gt_classes` of a record's objects, without crowds.

    Args:
        record: with annotations.
        size: (height, width) of the image.
    """
    keys = ("bbox", "bbox_mode", "category_id")
    objects = [{k: x[k] for k in keys} for x in record["annotations"] if not x.get("iscrowd", 0)]
    return annotations_to_instances(objects, size)


def objects_in_view(record: Record, view: dict[str, Any]) -> Instances:
    """The objects of `true_objects` in the frame of a view of the image; none is left out."""
    size = tuple(view["image"].shape[1:])
    objects = true_objects(record, (view["height"], view["width"]))
    to_view = torch.from_numpy(view["matrix"]).float()
    boxes = Boxes(project_boxes(objects.gt_boxes.tensor, to_view, size))
    return Instances(size, gt_boxes=boxes, gt_classes=objects.gt_classes)
