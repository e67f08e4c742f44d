"""Configs: read, settled and asked. The keys themselves are in `config_keys`."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from soft_teacher.config_keys import add_soft_teacher_config

logger = logging.getLogger(__name__)


def load_config(path: str, overrides: Sequence[str] = ()) -> CN:
    """Detectron2's defaults and this project's, changed by a file, then by KEY VALUE pairs.

    Raises:
        ValueError: the file, or one that it is based on, is no plain YAML: a tag in it might run
            Python code; a key is unknown; or one would have Detectron2 read a pickle.
    """
    cfg = get_cfg()
    add_soft_teacher_config(cfg)
    try:
        cfg.merge_from_file(path, allow_unsafe=False)
    except yaml.YAMLError as error:
        raise ValueError(
            f"The config {path}, or a _BASE_ of it, is no plain YAML: {error}. Tags of Python "
            "objects could run code and are refused; write numbers, strings and lists instead."
        ) from error
    except KeyError as error:
        raise ValueError(
            f"The config {path}, or a _BASE_ of it: {error.args[0]}; look at its spelling."
        ) from error
    try:
        cfg.merge_from_list(list(overrides))
    except AssertionError as error:
        raise ValueError(f"KEY VALUE pairs: {error}; look at their spelling.") from error
    if cfg.MODEL.LOAD_PROPOSALS:
        raise ValueError(
            "MODEL.LOAD_PROPOSALS is True, but Detectron2 reads proposals from pickles, which can "
            "run any code; set it to False: proposals come from the RPN."
        )
    return cfg


def settle_device(cfg: CN) -> None:
    """Set MODEL.DEVICE, which Detectron2 leaves at "cuda", to the CPU where there is no CUDA.

    Where it names one of several GPUs, that becomes the current one of this process.

    Raises:
        ValueError: it is the CPU, but this is one of several processes that share GPUs.
    """
    if cfg.MODEL.DEVICE == "cuda" and not torch.cuda.is_available():
        logger.warning("There is no CUDA device; MODEL.DEVICE is set to cpu")
        cfg.MODEL.DEVICE = "cpu"
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    if device.type == "cpu" and dist.is_initialized() and dist.get_backend() == "nccl":
        raise ValueError(
            "MODEL.DEVICE is cpu, but several processes were started on a machine with GPUs, and "
            "talk to each other through these. Hide them: put CUDA_VISIBLE_DEVICES= in front of "
            "the command."
        )


def changed_keys(cfg: CN, defaults: CN) -> dict[str, Any]:
    """What `cfg` has other than `defaults`, nested alike."""
    changes: dict[str, Any] = {}
    for key, value in cfg.items():
        if isinstance(value, CN) and key in defaults:
            inner = changed_keys(value, defaults[key])
            if inner:
                changes[key] = inner
        elif key not in defaults or value != defaults[key]:
            changes[key] = value
    return changes


def describe_config(cfg: CN) -> str:
    """What a config changes, as text: two configs that mean the same have the same one.

    Keys that later versions add do not alter it, as their defaults leave everything as it was.
    """
    defaults = get_cfg()
    add_soft_teacher_config(defaults)
    return CN(changed_keys(cfg, defaults)).dump()


HEAD_SECTIONS = {
    "RetinaNet": "RETINANET",
    "SoftTeacherRetinaNet": "RETINANET",
    "SoftTeacherFCOS": "FCOS",
}
"""MODEL.META_ARCHITECTURE -> the section of MODEL with its NUM_CLASSES and SCORE_THRESH_TEST; that
of all others is ROI_HEADS. An architecture of yours with another section adds itself."""


def head_section(cfg: CN) -> str:
    """Name of the section of MODEL that holds NUM_CLASSES and SCORE_THRESH_TEST of the model."""
    return HEAD_SECTIONS.get(cfg.MODEL.META_ARCHITECTURE, "ROI_HEADS")


def num_classes(cfg: CN) -> int:
    """How many classes the model has."""
    return cfg.MODEL[head_section(cfg)].NUM_CLASSES


def without_weights(cfg: CN) -> CN:
    """A copy of which a model is built without any file of weights, also of its backbone."""
    cfg = cfg.clone()
    cfg.defrost()
    # The detector's, and those of backbones in sections of their own.
    for section in (cfg.MODEL, *(x for x in cfg.MODEL.values() if isinstance(x, CN))):
        if "WEIGHTS" in section:
            section.WEIGHTS = ""
    return cfg


def lower_score_threshold(cfg: CN, threshold: float) -> None:
    """Let the model keep detections above a score, if its own threshold is higher; in place."""
    head = cfg.MODEL[head_section(cfg)]
    head.SCORE_THRESH_TEST = min(head.SCORE_THRESH_TEST, threshold)
