"""From a file of mmdetection to a file and a config of this project, all weights or none."""

from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from torch import Tensor

from soft_teacher.engine.atomic_file import open_atomically
from soft_teacher.engine.mmdet_checkpoint.architecture import detect_architecture
from soft_teacher.engine.mmdet_checkpoint.config_of import Settings, config_of, described_part
from soft_teacher.engine.mmdet_checkpoint.names import convert_state, without_counters
from soft_teacher.engine.mmdet_checkpoint.reading import (
    MODEL,
    STUDENT,
    TEACHER,
    MMDetFile,
    State,
    read_mmdet_file,
)
from soft_teacher.engine.mmdet_checkpoint.shapes import Architecture, ResNetShape
from soft_teacher.engine.model_classes import KEY
from soft_teacher.modeling.backbones.weight_files import differences_by_name, shapes_of

# mmdetection's models -> their keys in a checkpoint of this project.
_PARTS = {MODEL: "model", STUDENT: "model", TEACHER: "teacher"}
_COCO = "coco_2017_val"
_INDEX = "relative_position_index"


@dataclass(frozen=True)
class Conversion:
    """What was done, for people.

    Attributes:
        config_file: written beside the weights.
        architecture: of the model, or of both.
        models: keys of the models written, "model" and perhaps "teacher".
        num_tensors: that were taken over, over all models.
        dropped: mmdetection's tensors that carry nothing and have no counterpart.
        left_behind: parts of the file other than weights.
        remarks: what had to be assumed, one sentence each.
    """

    config_file: Path
    architecture: Architecture
    models: tuple[str, ...]
    num_tensors: int
    dropped: tuple[str, ...]
    left_behind: tuple[str, ...]
    remarks: tuple[str, ...]


def convert_checkpoint(
    path: Path, weights: Path, style: str | None = None, score_threshold: float | None = None
) -> Conversion:
    """Write an mmdetection checkpoint as one of this project, and its config beside it.

    Args:
        path: of mmdetection 2.x or 3.x, or of the official Soft Teacher.
        weights: .pth file to write: "model", of Soft Teacher the student, then also "teacher",
            and the classes' names, see `engine.model_classes`. The config has the suffix .yaml.
        style: see `Settings`; None takes what the file says, else "caffe" for a Soft Teacher and
            "pytorch" for others.
        score_threshold: see `Settings`.

    Raises:
        ValueError: the file is refused, or a weight on either side has no partner of its shape.
            Nothing is written then.
    """
    config_file = weights.with_suffix(".yaml")
    if weights.suffix != ".pth" or weights.resolve() == path.resolve():
        raise ValueError(
            f"{weights} is no place for the weights: name a new file that ends in .pth."
        )
    file = read_mmdet_file(path)
    architecture = _common_architecture(file)
    style, remarks = choose_style(file, architecture, style)
    cfg = config_of(architecture, Settings(style, score_threshold))
    parts, dropped = {}, []
    for name, state in file.models.items():
        parts[_PARTS[name]], gone = fit_to_model(state, cfg)
        dropped += gone
    models = tuple(parts)
    categories, remark = categories_of(file.class_names, architecture.num_classes)
    if categories is not None:
        parts[KEY] = categories
    cfg.MODEL.WEIGHTS = str(weights)
    if _is_coco(categories):
        cfg.DATASETS.TEST = (_COCO,)
    _write(weights, parts, config_file, described_part(cfg, architecture))
    return Conversion(
        config_file=config_file,
        architecture=architecture,
        models=models,
        num_tensors=sum(len(parts[x]) for x in models),
        dropped=tuple(dropped),
        left_behind=file.left_behind,
        remarks=(*remarks, remark),
    )


def fit_to_model(state: State, cfg: CfgNode) -> tuple[State, list[str]]:
    """A model's state by this project's names, each tensor checked against the model's own.

    Args:
        state: by mmdetection's names.
        cfg: of the model.

    Returns:
        The state, and the names, in mmdetection, of the tensors left out because they carry
        nothing.

    Raises:
        ValueError: tensors of either side that the other lacks or has in another shape; it lists
            all of them.
    """
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    wanted = build_model(cfg).state_dict()
    kept, dropped = without_counters(state, wanted)
    converted = convert_state(kept)
    differences = differences_by_name(shapes_of(converted), shapes_of(wanted), "the model")
    differences += [
        f"{key} arranges attention windows in another way"
        for key, tensor in converted.items()
        if key.endswith(_INDEX) and key in wanted and not torch.equal(tensor, wanted[key])
    ]
    if differences:
        raise ValueError(
            f"{len(differences)} weights do not fit the model that the file's sizes tell of; "
            f"nothing was converted: {'; '.join(differences)}"
        )
    return {key: _stored(converted[key], wanted[key]) for key in wanted}, dropped


def _stored(tensor: Tensor, wanted: Tensor) -> Tensor:
    """A tensor in the type of the model's and in memory of its own."""
    return tensor.detach().to(wanted.dtype).contiguous().clone()


def choose_style(
    file: MMDetFile, architecture: Architecture, style: str | None
) -> tuple[str, list[str]]:
    """The style of a ResNet, and a sentence on where it comes from if it was not given.

    Raises:
        ValueError: a style was given that the network cannot have.
    """
    if not isinstance(architecture.backbone, ResNetShape):
        if style == "caffe":
            raise ValueError("A Swin Transformer has no caffe style; leave --style out.")
        return "pytorch", []
    if style is not None:
        contradicts = file.style not in (None, style)
        remark = f"The config in the file says style {file.style!r}; {style!r} was asked for."
        return style, [remark] if contradicts else []
    if file.style is not None:
        return file.style, [f"The config in the file says style {file.style!r}."]
    style = "caffe" if TEACHER in file.models or STUDENT in file.models else "pytorch"
    return style, [
        f"The file does not tell the backbone's style; {style!r} is assumed. With the wrong one "
        "the numbers are wrong without an error; the name of mmdetection's config has 'caffe' in "
        "it if it is of that style, and --style sets it."
    ]


def categories_of(names: tuple[str, ...] | None, num_classes: int) -> tuple[list[dict] | None, str]:
    """The classes as categories of a COCO file, in the model's order, and a sentence on them.

    COCO's have COCO's ids, which are also what Detectron2 counts its contiguous classes by; all
    others are numbered from 1 on.

    Args:
        names: as the file has them, None if it has none.
        num_classes: of the model.
    """
    coco = MetadataCatalog.get(_COCO)
    ids = coco.thing_dataset_id_to_contiguous_id
    of_coco = [{"id": i, "name": coco.thing_classes[k]} for i, k in ids.items()]
    if names is None and num_classes == len(of_coco):
        return of_coco, "The file does not name its 80 classes; COCO's are assumed."
    if names is None:
        return None, "The file does not name its classes."
    if len(names) != num_classes or len(set(names)) != num_classes:
        return None, (
            f"The file names {len(names)} classes, but the model has {num_classes}; the names are "
            "left out."
        )
    if list(names) == coco.thing_classes:
        return of_coco, "The classes are COCO's."
    return (
        [{"id": i, "name": name} for i, name in enumerate(names, start=1)],
        f"The classes are {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}.",
    )


def _is_coco(categories: list[dict] | None) -> bool:
    names = MetadataCatalog.get(_COCO).thing_classes
    return categories is not None and [x["name"] for x in categories] == names


def _common_architecture(file: MMDetFile) -> Architecture:
    found = {name: detect_architecture(state) for name, state in file.models.items()}
    architectures = list(found.values())
    if any(x != architectures[0] for x in architectures):
        raise ValueError(
            "Student and teacher in the file are of different architectures: "
            + "; ".join(f"{name}: {x}" for name, x in found.items())
        )
    return architectures[0]


def _write(weights: Path, parts: dict, config_file: Path, config: CfgNode) -> None:
    weights.parent.mkdir(parents=True, exist_ok=True)
    with open_atomically(str(weights)) as f:
        torch.save(parts, f)
    with open_atomically(str(config_file), "w") as f:
        f.write(config.dump())
