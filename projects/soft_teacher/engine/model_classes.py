"""The names of a model's classes: from the file of its weights, or from what it learned from."""

import logging
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from soft_teacher.config import num_classes
from soft_teacher.data.datasets import class_categories
from soft_teacher.safe_loading import load_tensors

logger = logging.getLogger(__name__)

KEY = "categories"
"""Of a file of weights: the classes as categories of a COCO file, in the model's order."""


def training_categories(cfg: CfgNode) -> list[dict[str, Any]] | None:
    """The classes as the first set in DATASETS.TRAIN names them, see `class_categories`.

    Returns:
        Dicts of `id` and `name`, in the model's order; None, with a warning, if they are not known
        here, for example because the set is on another machine.
    """
    try:
        return [{"id": x["id"], "name": x["name"]} for x in class_categories(cfg)]
    except ValueError as error:
        logger.warning("The names of the classes are not known: %s", error)
        return None


def model_categories(cfg: CfgNode, weights: Path) -> list[dict[str, Any]]:
    """The classes of a model, as categories of a COCO file.

    Args:
        cfg, weights: as for `known_categories`.

    Returns:
        Dicts of `id` and `name`, in the model's order. Where nothing tells the names, which is
        warned of, they are "class 1", "class 2" and so on.

    Raises:
        ValueError: the file names others than the model has.
    """
    numbers = range(1, num_classes(cfg) + 1)
    return known_categories(cfg, weights) or [{"id": i, "name": f"class {i}"} for i in numbers]


def known_categories(cfg: CfgNode, weights: Path) -> list[dict[str, Any]] | None:
    """The same, or None where nothing tells the names.

    Args:
        cfg: the config of the training, or the one that tools/export_model.py wrote.
        weights: the file of the model's weights; the names in it come first.

    Raises:
        ValueError: the file names others than the model has.
    """
    count = num_classes(cfg)
    # Of a model zoo's pickles, and of bare state dicts, none has names.
    content = load_tensors(str(weights)) if weights.suffix == ".pth" else {}
    if KEY not in content:
        return training_categories(cfg)
    stored = content[KEY]
    if not _are_categories(stored, count):
        raise ValueError(
            f"{weights} does not name the {count} classes of the model, but {stored!r}; take the "
            "config that was written with it, or export the model again."
        )
    return stored


def _are_categories(stored: Any, count: int) -> bool:
    if not isinstance(stored, list) or not all(isinstance(x, dict) for x in stored):
        return False
    ids = [x.get("id") for x in stored if isinstance(x.get("id"), int)]
    names = [x["name"] for x in stored if isinstance(x.get("name"), str)]
    return len(stored) == len(set(ids)) == len(names) == count
