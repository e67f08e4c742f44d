"""Labeled and unlabeled sets: their names, their registration, their records."""

import json
import logging
import os
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import (
    filter_images_with_only_crowd_annotations,
    print_instances_class_histogram,
)
from detectron2.data.datasets import load_coco_json, register_coco_instances
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata
from detectron2.data.detection_utils import check_metadata_consistency
from detectron2.utils.file_io import PathManager

logger = logging.getLogger(__name__)

# The partially labeled protocol of sec. 4.1, and the 2 % that others report beside it.
FOLDS = (1, 2, 3, 4, 5)
PERCENTS = (1, 2, 5, 10)

Record = dict[str, Any]


def register_coco_sets(root: str) -> None:
    """Register the partially labeled splits of COCO and its unlabeled images.

    `coco_semi_{fold}@{percent}` and `coco_semi_{fold}@{percent}_unlabeled` lie in the official
    layout, annotations in coco/annotations/semi_supervised/ and images in coco/train2017/;
    `coco_2017_unlabeled` in coco/unlabeled2017/.

    Args:
        root: the folder that holds coco/.
    """
    images = os.path.join(root, "coco/train2017")
    folder = os.path.join(root, "coco/annotations/semi_supervised")
    for fold in FOLDS:
        for percent in PERCENTS:
            name, stem = f"coco_semi_{fold}@{percent}", f"instances_train2017.{fold}@{percent}"
            for set_name, file in (
                (name, f"{stem}.json"),
                (f"{name}_unlabeled", f"{stem}-unlabeled.json"),
            ):
                metadata = _get_builtin_metadata("coco")
                register_coco_instances(set_name, metadata, os.path.join(folder, file), images)
    # Its file has no categories, for which Detectron2's own loader asks.
    json_file = os.path.join(root, "coco/annotations/image_info_unlabeled2017.json")
    images = os.path.join(root, "coco/unlabeled2017")
    DatasetCatalog.register("coco_2017_unlabeled", lambda: load_image_records(json_file, images))
    MetadataCatalog.get("coco_2017_unlabeled").set(
        json_file=json_file,
        image_root=images,
        evaluator_type="coco",
        **_get_builtin_metadata("coco"),
    )


def register_custom_datasets(cfg: CfgNode) -> None:
    """Register the sets of DATASETS.CUSTOM; those that are known already are left as they are."""
    for entry in cfg.DATASETS.CUSTOM:
        if len(entry) != 3 or not all(isinstance(part, str) for part in entry):
            raise ValueError(
                f"DATASETS.CUSTOM has the entry {entry!r}; each must be a list of three strings, "
                "[name, annotation_json, image_root]."
            )
        name, json_file, image_root = entry
        if name not in DatasetCatalog:
            register_coco_instances(name, {}, json_file, image_root)
            continue
        known = MetadataCatalog.get(name)
        if (known.get("json_file"), known.get("image_root")) != (json_file, image_root):
            raise ValueError(
                f"DATASETS.CUSTOM gives the name {name!r} to {json_file}, but another set has it "
                "already; choose another name."
            )


def resolve_dataset_names(cfg: CfgNode) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the labeled and of the unlabeled sets, "{fold}" replaced by DATASETS.FOLD."""
    fold = str(cfg.DATASETS.FOLD)
    labeled = tuple(name.replace("{fold}", fold) for name in cfg.DATASETS.TRAIN)
    unlabeled = tuple(name.replace("{fold}", fold) for name in cfg.DATASETS.UNLABELED)
    return labeled, unlabeled


def labeled_records(cfg: CfgNode) -> list[Record]:
    """Records of all labeled sets, in Detectron2's dataset format.

    Images without an object (crowds do not count) are left out unless
    DATALOADER.FILTER_EMPTY_ANNOTATIONS is False.
    """
    register_custom_datasets(cfg)
    names, _ = resolve_dataset_names(cfg)
    if not names:
        raise ValueError("DATASETS.TRAIN is empty; name at least one labeled set.")
    records = [record for name in names for record in DatasetCatalog.get(name)]
    if any("annotations" not in record for record in records):
        raise ValueError(
            f"The labeled sets {', '.join(names)} in DATASETS.TRAIN hold images that come without "
            "annotations; name sets that are registered with them."
        )
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = filter_images_with_only_crowd_annotations(records)
    if not records:
        raise ValueError(
            f"The labeled sets {', '.join(names)} in DATASETS.TRAIN hold no image with an object; "
            "check their annotation files."
        )
    check_metadata_consistency("thing_classes", names)
    classes = MetadataCatalog.get(names[0]).thing_classes
    if len(classes) != cfg.MODEL.ROI_HEADS.NUM_CLASSES:
        raise ValueError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, but the labeled "
            f"set {names[0]} has {len(classes)} classes; set it to {len(classes)}."
        )
    print_instances_class_histogram(records, classes)
    return records


def unlabeled_records(cfg: CfgNode) -> list[Record]:
    """Records of all unlabeled sets: `file_name`, `height`, `width`, `image_id`, nothing else.

    Annotations never get here, whether the sets have any or not.
    """
    register_custom_datasets(cfg)
    _, names = resolve_dataset_names(cfg)
    if not names:
        raise ValueError(
            "DATASETS.UNLABELED is empty; name at least one unlabeled set, or set "
            "SOFT_TEACHER.ENABLED to False."
        )
    records = [record for name in names for record in _image_records(name)]
    if not records:
        raise ValueError(
            f"The unlabeled sets {', '.join(names)} in DATASETS.UNLABELED hold no image; check "
            "their annotation files."
        )
    logger.info("Unlabeled images: %d, from %s", len(records), ", ".join(names))
    return records


def unlabeled_ground_truth(cfg: CfgNode) -> dict[str, list[dict[str, Any]]]:
    """What is known of the objects in the unlabeled images, to measure pseudo labels by.

    Never for training: this is a separate door, and no loader or mapper uses it.

    Returns:
        Annotations in Detectron2's dataset format (boxes in the original frame, their mode in
        `bbox_mode`; crowds included) by the image's `file_name`, since ids of several sets may
        collide. Images of sets without any annotation are absent; an image of another set
        that has no object is present with an empty list.
    """
    register_custom_datasets(cfg)
    labeled, unlabeled = resolve_dataset_names(cfg)
    truth = {}
    for name in unlabeled:
        records = _annotated_records(name)
        if records:
            _check_same_classes(labeled[0], name)
        truth.update({record["file_name"]: record["annotations"] for record in records})
    return truth


def load_image_records(json_file: str, image_root: str) -> list[Record]:
    """Read the images of a COCO file, sorted by id, and nothing else of it.

    The file needs neither "annotations" nor "categories".

    Returns:
        Dicts of `file_name` (with `image_root`), `height`, `width` and `image_id`.
    """
    images = _read_json(json_file).get("images", [])
    for image in images:
        missing = {"id", "file_name", "height", "width"} - image.keys()
        if missing:
            raise ValueError(
                f"{json_file}: the image {image} lacks {', '.join(sorted(missing))}; add what is "
                "missing."
            )
    return [
        {
            "file_name": os.path.join(image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
        }
        for image in sorted(images, key=lambda image: image["id"])
    ]


def _image_records(name: str) -> list[Record]:
    """Records of one set without annotations."""
    if _is_coco_file(name):
        metadata = MetadataCatalog.get(name)
        return load_image_records(metadata.json_file, metadata.image_root)
    keys = ("file_name", "height", "width", "image_id")
    return [{key: record[key] for key in keys} for record in DatasetCatalog.get(name)]


def _annotated_records(name: str) -> list[Record]:
    """Records of one set with annotations; none if the set comes without any."""
    if not _is_coco_file(name):
        return [record for record in DatasetCatalog.get(name) if "annotations" in record]
    metadata = MetadataCatalog.get(name)
    if not _read_json(metadata.json_file).get("annotations"):
        return []
    return load_coco_json(metadata.json_file, metadata.image_root, name)


def _is_coco_file(name: str) -> bool:
    """Whether a registered set is one file in COCO's format, which can be read in parts."""
    return name in DatasetCatalog and MetadataCatalog.get(name).get("evaluator_type") == "coco"


def _check_same_classes(labeled: str, unlabeled: str) -> None:
    expected = MetadataCatalog.get(labeled).get("thing_classes")
    found = MetadataCatalog.get(unlabeled).get("thing_classes")
    if expected is not None and expected != found:
        raise ValueError(
            f"The unlabeled set {unlabeled} has the classes {found}, the labeled set {labeled} "
            f"{expected}; measuring pseudo labels needs the same classes in the same order."
        )


def _read_json(json_file: str) -> dict[str, Any]:
    with PathManager.open(json_file) as file:
        return json.load(file)


register_coco_sets(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
