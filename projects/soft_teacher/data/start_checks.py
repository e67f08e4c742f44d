"""What is looked at before training begins, so that nothing of it costs finished work."""

import logging
import os
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from soft_teacher.data.datasets import image_records, load_test_set
from soft_teacher.data.registry import (
    is_custom,
    register_custom_datasets,
    resolve_dataset_names,
)

logger = logging.getLogger(__name__)


def check_test_sets(cfg: CfgNode) -> None:
    """Make sure that the sets of DATASETS.TEST can be evaluated on; every process calls this.

    Raises:
        ValueError: one cannot, see `datasets.load_test_set`.
    """
    register_custom_datasets(cfg)
    for name in cfg.DATASETS.TEST:
        if is_custom(name):
            load_test_set(cfg, name)


def warn_of_shared_images(cfg: CfgNode) -> None:
    """Warn, with a count, of images that stand in two of the labeled, unlabeled and test sets.

    Compared are paths, and ids with file names and sizes. Copies under other names are found by
    tools/check_dataset.py. The built-in sets are disjoint by definition and not read for this.
    """
    if not comm.is_main_process():
        return
    register_custom_datasets(cfg)
    labeled, unlabeled = resolve_dataset_names(cfg)
    roles = {"labeled": labeled, "test": cfg.DATASETS.TEST}
    if cfg.SOFT_TEACHER.ENABLED:
        roles["unlabeled"] = unlabeled
    images = {
        role: [x for name in names if is_custom(name) for x in image_records(name)]
        for role, names in roles.items()
    }
    for first, second in (("labeled", "unlabeled"), ("labeled", "test"), ("unlabeled", "test")):
        shared = shared_images(images.get(first, []), images.get(second, []))
        if shared:
            logger.warning(
                "%d images are both %s and %s, the first is %s; results on them say little",
                *(len(shared), first, second, shared[0]),
            )


def shared_images(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[str]:
    """File names of the second list's images that the first one has.

    The same image is one of the same path, or one of the same id, file name and size.
    """
    paths = {os.path.realpath(x["file_name"]) for x in first}
    looks = {_looks(x) for x in first}
    return [
        x["file_name"]
        for x in second
        if os.path.realpath(x["file_name"]) in paths or _looks(x) in looks
    ]


def _looks(record: dict[str, Any]) -> tuple:
    name = os.path.basename(record["file_name"])
    return record["image_id"], name, record.get("height"), record.get("width")
