"""Names of data sets: the built-in ones, those of DATASETS.CUSTOM, and what they stand for."""

import os

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.builtin_meta import _get_builtin_metadata

from soft_teacher.data.coco_file import load_coco_set, load_image_records
from soft_teacher.data.image_sources import load_image_source

# The partially labeled protocol of sec. 4.1, and the 2 % that others report beside it.
FOLDS = (1, 2, 3, 4, 5)
PERCENTS = (1, 2, 5, 10)


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
    DatasetCatalog.register("coco_2017_unlabeled", lambda: load_image_records(json_file, images)[0])
    MetadataCatalog.get("coco_2017_unlabeled").set(
        json_file=json_file,
        image_root=images,
        evaluator_type="coco",
        **_get_builtin_metadata("coco"),
    )


def register_custom_datasets(cfg: CfgNode) -> None:
    """Register the sets of DATASETS.CUSTOM; those that are known already are left as they are.

    A set is [name, annotation_json, image_root]. With an empty annotation_json, image_root is a
    folder, a glob pattern or a text list of images, see `image_sources`. Nothing is read yet.

    Raises:
        ValueError: an entry has another form, or its name belongs to another set.
    """
    for entry in cfg.DATASETS.CUSTOM:
        if len(entry) != 3 or not all(isinstance(part, str) for part in entry):
            raise ValueError(
                f"DATASETS.CUSTOM has the entry {entry!r}; each must be a list of three strings, "
                "[name, annotation_json, image_root]."
            )
        name, json_file, image_root = entry
        if name not in DatasetCatalog:
            _register_custom(name, json_file, image_root)
        elif MetadataCatalog.get(name).get("custom_source") != (json_file, image_root):
            raise ValueError(
                f"DATASETS.CUSTOM gives the name {name!r} to {json_file or image_root}, but "
                "another set has it already; choose another name."
            )


def resolve_dataset_names(cfg: CfgNode) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the labeled and of the unlabeled sets, "{fold}" replaced by DATASETS.FOLD."""
    fold = str(cfg.DATASETS.FOLD)
    labeled = tuple(name.replace("{fold}", fold) for name in cfg.DATASETS.TRAIN)
    unlabeled = tuple(name.replace("{fold}", fold) for name in cfg.DATASETS.UNLABELED)
    return labeled, unlabeled


def annotation_file(name: str) -> str | None:
    """The COCO file of a registered set; None if it is a folder of images or a function."""
    if name not in DatasetCatalog:
        return None
    metadata = MetadataCatalog.get(name)
    custom = metadata.get("custom_source")
    if custom is not None:
        return custom[0] or None
    return metadata.get("json_file") if metadata.get("evaluator_type") == "coco" else None


def image_root(name: str) -> str:
    """The folder that the image names of a set with an `annotation_file` start from."""
    metadata = MetadataCatalog.get(name)
    custom = metadata.get("custom_source")
    return metadata.image_root if custom is None else custom[1]


def is_custom(name: str) -> bool:
    """Whether a registered set is one of DATASETS.CUSTOM."""
    return MetadataCatalog.get(name).get("custom_source") is not None


def _register_custom(name: str, json_file: str, root: str) -> None:
    metadata = MetadataCatalog.get(name).set(
        custom_source=(json_file, root), evaluator_type="coco" if json_file else None
    )
    if not json_file:
        DatasetCatalog.register(name, lambda: load_image_source(root))
        return

    def load() -> list[dict]:
        # The classes are known once the labeled set was read, see `datasets.learn_classes`.
        return load_coco_set(json_file, root, metadata.get("thing_classes")).records

    DatasetCatalog.register(name, load)


register_coco_sets(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
