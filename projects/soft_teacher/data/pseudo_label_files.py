"""Files of pseudo labels: unlabeled images with boxes that a model found in them beforehand.

Such a file is in COCO's format, each annotation with a `score`; tools/pseudo_label.py writes it. It
goes with an unlabeled set: the set says where the images are, the file what is in them, and the
images' names tell which is which. This is a door of its own: what the set's own annotations say
never comes through it.
"""

import logging
import os

from detectron2.config import CfgNode

from soft_teacher.data.coco_file import Record, load_coco_set
from soft_teacher.data.datasets import check_num_classes, class_names, image_records
from soft_teacher.data.registry import (
    annotation_file,
    image_root,
    is_custom,
    register_custom_datasets,
    resolve_dataset_names,
)

logger = logging.getLogger(__name__)

KEY = "SOFT_TEACHER.PSEUDO_LABELS.FILES"


def pseudo_label_files(cfg: CfgNode) -> tuple[str, ...]:
    """The files of SOFT_TEACHER.PSEUDO_LABELS.FILES, "{fold}" replaced by DATASETS.FOLD."""
    fold = str(cfg.DATASETS.FOLD)
    return tuple(x.replace("{fold}", fold) for x in cfg.SOFT_TEACHER.PSEUDO_LABELS.FILES)


def pseudo_labeled_records(cfg: CfgNode) -> list[Record]:
    """Records of the unlabeled sets with the boxes of SOFT_TEACHER.PSEUDO_LABELS.FILES.

    Images that a file does not list are left out: nobody has looked for objects in them. So are
    images without a box that teaches classification, unless DATALOADER.FILTER_EMPTY_ANNOTATIONS is
    False.

    Returns:
        Dicts in Detectron2's dataset format; each of their annotations has a `score` above
        SOFT_TEACHER.PSEUDO_LABELS.MIN_SCORE.

    Raises:
        ValueError: a file is missing, has annotations without a score or other classes than the
            labeled set, is not of its unlabeled set, or no image is left.
    """
    register_custom_datasets(cfg)
    _, names = resolve_dataset_names(cfg)
    files = pseudo_label_files(cfg)
    if len(files) != len(names):
        raise ValueError(
            f"{KEY} names {len(files)} files for the {len(names)} sets in DATASETS.UNLABELED; give "
            "one for each, in the same order."
        )
    records = [x for pair in zip(names, files, strict=True) for x in _records_of(cfg, *pair)]
    logger.info(
        "Pseudo-labeled images: %d with %d boxes, from %s",
        *(len(records), sum(len(x["annotations"]) for x in records), ", ".join(files)),
    )
    if not records:
        raise ValueError(
            f"The files {', '.join(files)} in {KEY} have no box with a score above "
            f"SOFT_TEACHER.PSEUDO_LABELS.CLS_SCORE ({cfg.SOFT_TEACHER.PSEUDO_LABELS.CLS_SCORE}); "
            "lower it, or label the images with a better model."
        )
    return records


def images_folder(name: str, records: list[Record]) -> str:
    """The folder that the image names in a pseudo-label file of a set start from.

    Args:
        name: of a registered set.
        records: of its images, at least one.

    Returns:
        The image root of a set with an annotation file; the folder of a set that is a folder; the
        deepest folder that holds all images of any other.
    """
    if annotation_file(name) is not None or (is_custom(name) and os.path.isdir(image_root(name))):
        return image_root(name)
    folders = {os.path.dirname(os.path.abspath(record["file_name"])) for record in records}
    return os.path.commonpath(folders)


def name_in_folder(file_name: str, folder: str) -> str:
    """What a pseudo-label file calls an image, see `images_folder`."""
    return os.path.relpath(os.path.abspath(file_name), os.path.abspath(folder))


def _records_of(cfg: CfgNode, name: str, json_file: str) -> list[Record]:
    """Records of one unlabeled set with the boxes of its file."""
    unlabeled = image_records(name)
    if not unlabeled:
        raise ValueError(
            f"The unlabeled set {name} in DATASETS.UNLABELED holds no image; check its files."
        )
    if not os.path.isfile(json_file):
        raise ValueError(
            f"There is no file {json_file}, which {KEY} names for the set {name}; write it with "
            "tools/pseudo_label.py, or correct the path."
        )
    root = images_folder(name, unlabeled)
    coco_set = load_coco_set(json_file, root, class_names(cfg), masks=False, scored=True)
    coco_set.problems.warn(logger, json_file)
    check_num_classes(cfg, coco_set.classes, json_file)
    records = _of_the_set(coco_set.records, unlabeled, name, json_file)
    rules = cfg.SOFT_TEACHER.PSEUDO_LABELS
    for record in records:
        record["annotations"] = [x for x in record["annotations"] if x["score"] > rules.MIN_SCORE]
    if not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        return records
    teaching = [x for x in records if any(a["score"] > rules.CLS_SCORE for a in x["annotations"])]
    logger.info(
        "%s: %d of %d images have a box with a score above %s, the others are left out",
        *(json_file, len(teaching), len(records), rules.CLS_SCORE),
    )
    return teaching


def _of_the_set(
    labeled: list[Record], unlabeled: list[Record], name: str, json_file: str
) -> list[Record]:
    """Those of the labeled images that are in the set; warns of images that only one side has."""
    known = {os.path.abspath(record["file_name"]) for record in unlabeled}
    common = [x for x in labeled if os.path.abspath(x["file_name"]) in known]
    if not common:
        raise ValueError(
            f"{json_file} lists none of the {len(unlabeled)} images of the set {name}, such as "
            f"{unlabeled[0]['file_name']}; give {KEY} the file that was made from this set."
        )
    only_there, only_here = len(labeled) - len(common), len(unlabeled) - len(common)
    if only_there or only_here:
        logger.warning(
            "%d images of the set %s are not in %s, and %d images there are not in the set; all of "
            "them are left out",
            *(only_here, name, json_file, only_there),
        )
    return common
