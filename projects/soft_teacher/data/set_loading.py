"""Reading a set to look it over: as training reads it, but a set that is refused is no end."""

import contextlib
from dataclasses import dataclass, field
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from soft_teacher.data.coco_file import load_coco_set, load_image_records, read_coco_content
from soft_teacher.data.dataset_findings import LABELED, UNLABELED
from soft_teacher.data.datasets import class_names
from soft_teacher.data.image_sources import load_image_source
from soft_teacher.data.problems import Problems
from soft_teacher.data.registry import annotation_file, image_root, is_custom


@dataclass
class LoadedSet:
    """A set as its files describe it.

    Attributes:
        name: of the set.
        role: `LABELED`, `UNLABELED` or `TEST`.
        origin: files and folders that it comes from.
        records: of its images, in training's order.
        annotated: records with `annotations`; empty if the set has none.
        classes: names that the annotations count in.
        problems: what was mended or left out.
        error: why the set cannot be used; "" if it can.
        unmeasured: why pseudo labels of an unlabeled set cannot be compared with the annotations
            that it has; "" if they can, or there are none.
        filtered: whether training leaves out images without an object.
        reads_empty: whether anything reads images without an object.
    """

    name: str
    role: str
    origin: str = ""
    records: list[dict[str, Any]] = field(default_factory=list)
    annotated: list[dict[str, Any]] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)
    error: str = ""
    unmeasured: str = ""
    filtered: bool = False
    reads_empty: bool = True


def load_named_set(cfg: CfgNode, name: str, role: str) -> LoadedSet:
    """Read a set of a config.

    Args:
        cfg: the config, its sets registered.
        name: of the set.
        role: what the config uses it for.
    """
    filtered = role == LABELED and cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    loaded = LoadedSet(name, role, filtered=filtered, reads_empty=not filtered)
    json_file = annotation_file(name)
    if json_file is not None:
        loaded.origin = f"{json_file}, images in {image_root(name)}"
        _read_coco(loaded, json_file, image_root(name), _classes(cfg, name))
    elif is_custom(name):
        _read_images(loaded, MetadataCatalog.get(name).custom_source[1])
    elif name in DatasetCatalog:
        _read_function(loaded)
    else:
        loaded.error = (
            f"The config names the set {name}, which is neither built in nor in DATASETS.CUSTOM; "
            "correct the name."
        )
    return loaded


def load_files(json_file: str | None, images: str) -> LoadedSet:
    """Read a set that no config names.

    Args:
        json_file: COCO file of a set that is labeled or to be tested on; None for images alone.
        images: folder of the images; without a COCO file also a glob pattern or a text list.
    """
    if json_file is None:
        loaded = LoadedSet(images, UNLABELED)
        _read_images(loaded, images)
    else:
        loaded = LoadedSet(json_file, LABELED, f"images in {images}", filtered=True)
        _read_coco(loaded, json_file, images, None)
    return loaded


def _classes(cfg: CfgNode, name: str) -> list[str] | None:
    """Names that the categories of a set are matched with; None takes the set's own."""
    if not is_custom(name):
        return MetadataCatalog.get(name).get("thing_classes")
    try:
        return class_names(cfg)
    except (ValueError, OSError):
        # The first labeled set is broken, and reported.
        return None


def _read_coco(loaded: LoadedSet, json_file: str, root: str, classes: list[str] | None) -> None:
    if loaded.role == UNLABELED:
        _read_unlabeled_coco(loaded, json_file, root, classes)
        return
    try:
        coco_set = load_coco_set(json_file, root, classes, masks=False)
    except (ValueError, OSError) as error:
        loaded.error = str(error)
        # Its images can be looked at nevertheless, if it has any.
        with contextlib.suppress(ValueError, OSError):
            loaded.records, loaded.problems = load_image_records(json_file, root)
        return
    loaded.records = loaded.annotated = coco_set.records
    loaded.classes, loaded.problems = coco_set.classes, coco_set.problems


def _read_unlabeled_coco(
    loaded: LoadedSet, json_file: str, root: str, classes: list[str] | None
) -> None:
    """Images are what training needs; annotations, if there are any, measure pseudo labels."""
    try:
        loaded.records, loaded.problems = load_image_records(json_file, root)
    except (ValueError, OSError) as error:
        loaded.error = str(error)
        return
    if not read_coco_content(json_file, ("images",), masks=False).get("annotations"):
        return
    try:
        coco_set = load_coco_set(json_file, root, classes, masks=False)
    except ValueError as error:
        loaded.unmeasured = str(error)
        return
    loaded.annotated, loaded.classes = coco_set.records, coco_set.classes
    loaded.problems = coco_set.problems


def _read_images(loaded: LoadedSet, source: str) -> None:
    loaded.origin = f"images of {source}"
    try:
        loaded.records = load_image_source(source)
    except (ValueError, OSError) as error:
        loaded.error = str(error)


def _read_function(loaded: LoadedSet) -> None:
    """A set that a function of the user's gives."""
    loaded.origin = "registered by a function"
    loaded.records = [dict(record) for record in DatasetCatalog.get(loaded.name)]
    classes = MetadataCatalog.get(loaded.name).get("thing_classes")
    if classes and all("annotations" in record for record in loaded.records):
        loaded.annotated, loaded.classes = loaded.records, list(classes)
