"""Builds all parts of a training from a config, without weights, data or memory for them."""

from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from soft_teacher.config import without_weights
from soft_teacher.data import ImageMapper, LabeledMapper, TwoViewMapper, resolve_dataset_names
from soft_teacher.data.registry import register_custom_datasets
from soft_teacher.engine.global_normalizer import read_normalizer_scope
from soft_teacher.engine.schedule import read_unlabeled_decay
from soft_teacher.engine.trainer import SoftTeacherTrainer, refuse_what_would_be_ignored


def find_recipes(folder: Path) -> list[Path]:
    """The configs below a folder that a training can be run with, by path.

    Files named Base-* are parts of others, and those with rows are suites.
    """
    files = sorted(x for x in folder.rglob("*.yaml") if not x.name.startswith("Base-"))
    return [x for x in files if not _is_suite(x)]


def _is_suite(path: Path) -> bool:
    # Only the keys are looked at: a config may have tags that are refused when it is loaded.
    node = yaml.compose(path.read_text(encoding="utf-8"))
    return isinstance(node, yaml.MappingNode) and any(k.value == "rows" for k, _ in node.value)


def build_all(cfg: CfgNode) -> int:
    """Build model, optimizer, schedule and augmentations.

    Returns:
        The number of the model's parameters, frozen ones included.

    Raises:
        ValueError, KeyError, AssertionError, RuntimeError: something cannot be built.
    """
    refuse_what_would_be_ignored(cfg)
    read_normalizer_scope(cfg)
    read_unlabeled_decay(cfg, world_size=1)
    register_custom_datasets(cfg)
    resolve_dataset_names(cfg)
    cfg = without_weights(cfg)
    # Shapes without values: to draw random weights is what would take the time.
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    optimizer = SoftTeacherTrainer.build_optimizer(cfg, model)
    SoftTeacherTrainer.build_lr_scheduler(cfg, optimizer)
    for mapper in (LabeledMapper, TwoViewMapper, ImageMapper):
        mapper(cfg)
    return sum(x.numel() for x in model.parameters())
