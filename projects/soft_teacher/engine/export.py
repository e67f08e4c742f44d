"""Export: one model of a checkpoint with a config, as Detectron2 alone can use them."""

from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from torch import Tensor

from soft_teacher.config import changed_keys
from soft_teacher.engine.model_classes import KEY, known_categories
from soft_teacher.safe_loading import load_tensors

# Model -> its key in a checkpoint, see `engine.checkpointing`.
MODELS = {"student": "model", "teacher": "teacher"}
# This project's classes -> those of Detectron2 with the same parameters and the same inference.
STOCK_NAMES = {
    "SoftTeacherRCNN": "GeneralizedRCNN",
    "SoftTeacherRetinaNet": "RetinaNet",
    "SoftTeacherROIHeads": "StandardROIHeads",
    "SoftTeacherCascadeROIHeads": "CascadeROIHeads",
}
# Architectures, backbones and heads that Detectron2's YAML does not know -> the section of MODEL
# that describes them, "" for one that has none.
OWN_PARTS = {
    "build_timm_fpn_backbone": "TIMM",
    "build_timm_p6p7_fpn_backbone": "TIMM",
    "build_resnet_p6p7_fpn_backbone": "",
    "build_swin_fpn_backbone": "SWIN",
    "build_swin_p6p7_fpn_backbone": "SWIN",
    "SoftTeacherFCOS": "FCOS",
    "SoftTeacherHTCROIHeads": "ROI_HTC",
}


def export_model(checkpoint: Path, model: str, cfg: CfgNode, weights: Path) -> Path:
    """Write a model of a checkpoint as a plain weight file, and a plain config beside it.

    Args:
        checkpoint: file that training saved.
        model: "student" or "teacher".
        cfg: the config of that training.
        weights: .pth file to write, {"model": state_dict} and, if the classes' names are known,
            "categories" (see `engine.model_classes`), which Detectron2 passes over; the config's
            MODEL.WEIGHTS names it as it is given here.

    Returns:
        The config's file, `weights` with the suffix .yaml. It holds what differs from Detectron2's
        defaults.

    Raises:
        ValueError: the checkpoint has no such model, or `weights` is the checkpoint itself or no
            .pth file.
    """
    config_file = weights.with_suffix(".yaml")
    if weights.suffix != ".pth" or weights.resolve() == checkpoint.resolve():
        raise ValueError(
            f"{weights} is no place for the weights: name a new file that ends in .pth."
        )
    state = read_model(checkpoint, model)
    plain = plain_config(cfg)
    plain.MODEL.WEIGHTS = str(weights)
    weights.parent.mkdir(parents=True, exist_ok=True)
    categories = known_categories(cfg, checkpoint)
    torch.save({"model": state, **({KEY: categories} if categories else {})}, weights)
    changes = {**changed_keys(plain, get_cfg()), "VERSION": plain.VERSION}
    config_file.write_text(CfgNode(changes).dump())
    return config_file


def read_model(checkpoint: Path, model: str) -> dict[str, Tensor]:
    """The state of the student or of the teacher from a checkpoint, on the CPU.

    Raises:
        ValueError: the file is no checkpoint of this project.
    """
    parts = load_tensors(str(checkpoint))
    # The best teacher's file has a "model" as well, which is no student.
    if not isinstance(parts, dict) or not set(MODELS.values()) <= set(parts):
        raise ValueError(
            f"{checkpoint} does not hold a student and a teacher: give a checkpoint that "
            "train_net.py saved. (A file with one model, such as model_best_teacher.pth, is a "
            "plain weight file already: set MODEL.WEIGHTS to it.)"
        )
    return parts[MODELS[model]]


def plain_config(cfg: CfgNode) -> CfgNode:
    """Detectron2's config of the same model and the same inference, without this project's keys.

    Solver, training sets and device are not taken over. Sections that the model cannot do without,
    such as MODEL.TIMM, stay; see :func:`needs_this_project`.
    """
    plain = get_cfg()
    device = plain.MODEL.DEVICE
    for section in ("MODEL", "INPUT"):
        _copy_known_keys(plain[section], cfg[section])
    plain.DATASETS.TEST = cfg.DATASETS.TEST
    plain.TEST.DETECTIONS_PER_IMAGE = cfg.TEST.DETECTIONS_PER_IMAGE
    plain.MODEL.DEVICE = device
    plain.MODEL.META_ARCHITECTURE = _stock_name(cfg.MODEL.META_ARCHITECTURE)
    plain.MODEL.ROI_HEADS.NAME = _stock_name(cfg.MODEL.ROI_HEADS.NAME)
    for section in filter(None, (OWN_PARTS[part] for part in _own_parts(cfg))):
        plain.MODEL[section] = cfg.MODEL[section].clone()
        if "WEIGHTS" in plain.MODEL[section]:
            plain.MODEL[section].WEIGHTS = ""  # the exported file holds them
    return plain


def needs_this_project(cfg: CfgNode) -> bool:
    """Whether even inference needs this package, for its backbone, for FCOS or for HTC.

    A program then has to `import soft_teacher.modeling` and to call `add_soft_teacher_config`.
    """
    return bool(_own_parts(cfg))


def _own_parts(cfg: CfgNode) -> list[str]:
    model = cfg.MODEL
    names = (model.META_ARCHITECTURE, model.BACKBONE.NAME, model.ROI_HEADS.NAME)
    return [x for x in names if x in OWN_PARTS]


def _stock_name(name: str) -> str:
    return STOCK_NAMES.get(name, name)


def _copy_known_keys(target: CfgNode, source: CfgNode) -> None:
    """Copy from `source` the values of all keys that `target` has."""
    for key, value in target.items():
        if isinstance(value, CfgNode):
            _copy_known_keys(value, source[key])
        else:
            target[key] = source[key]
