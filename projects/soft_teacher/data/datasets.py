"""Records of labeled, unlabeled and test sets, each through a door of its own."""

import logging
import os
from collections import defaultdict
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import (
    filter_images_with_only_crowd_annotations,
    print_instances_class_histogram,
)

from soft_teacher.config import head_section, num_classes
from soft_teacher.data.coco_file import (
    CocoSet,
    Record,
    load_categories,
    load_coco_set,
    load_image_records,
    read_coco_content,
)
from soft_teacher.data.mask_annotations import check_masks
from soft_teacher.data.registry import (
    annotation_file,
    image_root,
    is_custom,
    register_custom_datasets,
    resolve_dataset_names,
)
from soft_teacher.data.semantic_maps import name_semantic_maps

logger = logging.getLogger(__name__)


def class_names(cfg: CfgNode) -> list[str] | None:
    """The names of the classes: those of the first set in DATASETS.TRAIN, or None without one."""
    register_custom_datasets(cfg)
    names, _ = resolve_dataset_names(cfg)
    if not names:
        return None
    if is_custom(names[0]) and MetadataCatalog.get(names[0]).get("thing_classes") is None:
        _load_annotated(names[0], None, masks=False)
    return MetadataCatalog.get(names[0]).get("thing_classes")


def class_categories(cfg: CfgNode) -> list[dict[str, Any]]:
    """The classes as categories of a COCO file, in the model's order.

    Returns:
        Dicts of `name` and `id`, the one that the first set in DATASETS.TRAIN gives to the class.

    Raises:
        ValueError: there is no such set, or its classes are unknown or not as many as the model's.
    """
    classes = class_names(cfg)
    if classes is None:
        raise ValueError(
            "DATASETS.TRAIN is empty, or its first set has no thing_classes; the names of the "
            "classes come from there, so name the labeled set that the model was trained on."
        )
    first = resolve_dataset_names(cfg)[0][0]
    check_num_classes(cfg, classes, first)
    if is_custom(first):
        return load_categories(annotation_file(first))
    ids = MetadataCatalog.get(first).get("thing_dataset_id_to_contiguous_id")
    ids = {k + 1: k for k in range(len(classes))} if ids is None else ids
    return [{"id": i, "name": classes[k]} for i, k in sorted(ids.items(), key=lambda x: x[1])]


def labeled_records(cfg: CfgNode) -> list[Record]:
    """Records of all labeled sets, in Detectron2's dataset format.

    Images without an object (crowds do not count) are left out unless
    DATALOADER.FILTER_EMPTY_ANNOTATIONS is False. The classes are those of the first set; other
    sets may number them differently.

    Raises:
        ValueError: there is nothing to learn from, an image is missing, the number of classes is
            not that of the model, the model has masks and an object has none, or it has a semantic
            branch and an image has no map for it.
    """
    register_custom_datasets(cfg)
    names, _ = resolve_dataset_names(cfg)
    if not names:
        raise ValueError("DATASETS.TRAIN is empty; name at least one labeled set.")
    records, classes = [], None
    for name in names:
        records += _labeled_records_of(name, classes, cfg.MODEL.MASK_ON)
        classes = classes or MetadataCatalog.get(name).thing_classes
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = filter_images_with_only_crowd_annotations(records)
    if not records:
        raise ValueError(
            f"The labeled sets {', '.join(names)} in DATASETS.TRAIN hold no image with an object; "
            "check their annotation files."
        )
    check_num_classes(cfg, classes, names[0])
    if cfg.MODEL.MASK_ON:
        check_masks(records, f"The labeled sets {', '.join(names)}", cfg.INPUT.MASK_FORMAT)
    name_semantic_maps(records, cfg)
    check_images_exist(records, f"The labeled sets {', '.join(names)}")
    print_instances_class_histogram(records, classes)
    _warn_of_unseen_classes(records, classes)
    return records


def unlabeled_records(cfg: CfgNode) -> list[Record]:
    """Records of all unlabeled sets: `file_name`, `image_id`, and `height` and `width` if known.

    Annotations never get here, whether the sets have any or not.

    Raises:
        ValueError: there is no image.
    """
    register_custom_datasets(cfg)
    _, names = resolve_dataset_names(cfg)
    if not names:
        raise ValueError(
            "DATASETS.UNLABELED is empty; name at least one unlabeled set, or set "
            "SOFT_TEACHER.ENABLED to False."
        )
    records = [record for name in names for record in image_records(name)]
    if not records:
        raise ValueError(
            f"The unlabeled sets {', '.join(names)} in DATASETS.UNLABELED hold no image; check "
            "their annotation files."
        )
    logger.info("Unlabeled images: %d, from %s", len(records), ", ".join(names))
    missing = missing_files(records)
    if missing:
        logger.warning(
            "%d of the %d unlabeled images are missing and will be replaced by others (%s)",
            *(len(missing), len(records), _some(missing)),
        )
    return records


def unlabeled_ground_truth(
    cfg: CfgNode, skip_unusable: bool = False
) -> dict[str, list[dict[str, Any]]]:
    """What is known of the objects in the unlabeled images, to measure pseudo labels by.

    Never for training: this is a separate door, and no loader or mapper uses it.

    Args:
        cfg: the config.
        skip_unusable: warn of a set whose annotations cannot be used, in place of the error.

    Returns:
        Annotations in Detectron2's dataset format (boxes in the original frame, their mode in
        `bbox_mode`; crowds included) by the image's `file_name`, since ids of several sets may
        collide. Images of sets without any annotation are absent; an image of another set
        that has no object is present with an empty list.

    Raises:
        ValueError: annotations are there, but cannot be compared with the labeled sets' classes.
    """
    register_custom_datasets(cfg)
    _, unlabeled = resolve_dataset_names(cfg)
    truth = {}
    for name in unlabeled:
        try:
            records = _ground_truth_of(name, cfg)
        except ValueError as error:
            if not skip_unusable:
                raise
            logger.warning("Pseudo labels of the set %s are not measured: %s", name, error)
            continue
        truth.update({record["file_name"]: record["annotations"] for record in records})
    return truth


def image_records(name: str) -> list[Record]:
    """Records of one set without annotations, see `unlabeled_records`."""
    json_file = annotation_file(name)
    if json_file is not None:
        records, problems = load_image_records(json_file, image_root(name))
        problems.warn(logger, f"The set {name}")
        return records
    keys = ("file_name", "height", "width", "image_id")
    return [{k: record[k] for k in keys if k in record} for record in _registered_records(name)]


def _registered_records(name: str) -> list[Record]:
    """Records of a set that the user registered with Detectron2.

    Raises:
        ValueError: one lacks what Detectron2's dataset format has in each.
    """
    records = DatasetCatalog.get(name)
    for number, record in enumerate(records):
        missing = [key for key in ("file_name", "image_id") if key not in record]
        if missing:
            raise ValueError(
                f"Record {number} of the registered set {name} has no {' and no '.join(missing)}; "
                "Detectron2's standard dataset dicts have both, so let its function give them."
            )
    return records


def check_num_classes(cfg: CfgNode, classes: list[str], name: str) -> None:
    """Raise a ValueError unless the model has as many classes as a set."""
    if len(classes) != num_classes(cfg):
        raise ValueError(
            f"MODEL.{head_section(cfg)}.NUM_CLASSES is {num_classes(cfg)}, but the set "
            f"{name} has {len(classes)} classes; set it to {len(classes)}."
        )


def check_images_exist(records: list[Record], which: str) -> None:
    """Raise a ValueError that names images which are missing.

    Args:
        records: of labeled or test images, which nothing can replace.
        which: name of the set, for the message.
    """
    missing = missing_files(records)
    if missing:
        raise ValueError(
            f"{which}: {len(missing)} of {len(records)} images are missing ({_some(missing)}). "
            "Check image_root in DATASETS.CUSTOM, or DETECTRON2_DATASETS for the built-in sets."
        )


def missing_files(records: list[Record]) -> list[str]:
    """Names of local image files that are not there; folders are listed, files not touched."""
    by_folder = defaultdict(list)
    for record in records:
        folder, name = os.path.split(record["file_name"])
        if "://" not in folder:
            by_folder[folder].append(name)
    missing = []
    for folder, names in by_folder.items():
        present = set(os.listdir(folder or ".")) if os.path.isdir(folder or ".") else set()
        missing += [os.path.join(folder, name) for name in names if name not in present]
    return missing


def load_test_set(cfg: CfgNode, name: str) -> CocoSet:
    """Read a set of DATASETS.CUSTOM that is to be evaluated on, and tell Detectron2 about it.

    A file that pycocotools can evaluate with is used as it is. Otherwise (an annotation lacks its
    area, say, or the classes have another order) Detectron2's evaluator writes a file of its own
    from the cleaned records.

    Raises:
        ValueError: the set has no annotations or other classes, an image is missing, or the model
            has masks and an object has none.
    """
    if annotation_file(name) is None:
        raise ValueError(
            f"DATASETS.TEST names {name}, which has no annotations to evaluate with; give it an "
            "annotation_json in DATASETS.CUSTOM, or set DATASETS.TEST to ()."
        )
    coco_set = _load_annotated(name, class_names(cfg), masks=True)
    check_num_classes(cfg, coco_set.classes, name)
    check_images_exist(coco_set.records, f"The test set {name}")
    if cfg.MODEL.MASK_ON:
        check_masks(coco_set.records, f"The test set {name}")
    metadata = MetadataCatalog.get(name)
    if coco_set.evaluable:
        metadata.set(
            json_file=annotation_file(name), thing_dataset_id_to_contiguous_id=coco_set.id_to_class
        )
    else:
        identity = {i: i for i in range(len(coco_set.classes))}
        metadata.set(thing_dataset_id_to_contiguous_id=identity)
    return coco_set


def _labeled_records_of(name: str, classes: list[str] | None, masks: bool) -> list[Record]:
    """Records of one labeled set; `classes` are those of the first set, None for the first."""
    if annotation_file(name) is not None:
        return _load_annotated(name, classes, masks).records
    records = _registered_records(name)
    own = MetadataCatalog.get(name).get("thing_classes")
    if any("annotations" not in record for record in records) or own is None:
        raise ValueError(
            f"The labeled set {name} in DATASETS.TRAIN comes without annotations or classes; name "
            "sets that have an annotation file, or whose function and thing_classes give both."
        )
    _check_same_order(name, own, classes)
    return records


def _load_annotated(name: str, classes: list[str] | None, masks: bool) -> CocoSet:
    """Read an annotated set, report what is wrong with it, and note its classes."""
    metadata = MetadataCatalog.get(name)
    if not is_custom(name):
        own = metadata.get("thing_classes")
        _check_same_order(name, own, classes)
        classes = own
    coco_set = load_coco_set(annotation_file(name), image_root(name), classes, masks)
    coco_set.problems.warn(logger, f"The set {name}")
    metadata.set(thing_classes=coco_set.classes)
    return coco_set


def _check_same_order(name: str, own: list[str] | None, classes: list[str] | None) -> None:
    if classes is not None and own is not None and list(own) != list(classes):
        raise ValueError(
            f"The set {name} has the classes {own}, the first labeled set {classes}; sets that are "
            "not in DATASETS.CUSTOM need the same classes in the same order."
        )


def _ground_truth_of(name: str, cfg: CfgNode) -> list[Record]:
    """Records of one unlabeled set with annotations; none if the set comes without any."""
    json_file = annotation_file(name)
    if json_file is None:
        return [record for record in _registered_records(name) if "annotations" in record]
    if not read_coco_content(json_file, ("images",), masks=False).get("annotations"):
        return []
    return _load_annotated(name, class_names(cfg), masks=False).records


def _warn_of_unseen_classes(records: list[Record], classes: list[str]) -> None:
    seen = {x["category_id"] for r in records for x in r["annotations"] if not x.get("iscrowd", 0)}
    unseen = [name for i, name in enumerate(classes) if i not in seen]
    if unseen:
        logger.warning(
            "No labeled image shows %s: these classes cannot be learned, and the teacher cannot "
            "find them in unlabeled images either",
            ", ".join(unseen),
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
