"""What two runs must share so that one can go on where the other stopped."""

from detectron2.config import CfgNode

from soft_teacher.data import pseudo_label_files, resolve_dataset_names
from soft_teacher.data.datasets import class_names

NUM_PROCESSES = "number of processes"
CLASSES = "classes"
SCALE = "SOLVER.REFERENCE_WORLD_SIZE"

OF_OPTIMIZER = (
    "SOLVER.BASE_LR",
    "SOLVER.BIAS_LR_FACTOR",
    "SOLVER.MOMENTUM",
    "SOLVER.NESTEROV",
    "SOLVER.WEIGHT_DECAY",
    "SOLVER.WEIGHT_DECAY_NORM",
    "SOLVER.WEIGHT_DECAY_BIAS",
)
"""Keys whose values an optimizer keeps in its state, so that the config's would be ignored."""


def describe_run(cfg: CfgNode, world_size: int) -> dict:
    """The settings on which the meaning of a checkpoint's counters and states depends.

    Which images the sets hold is not known before they are read; see `LoaderStream`.
    """
    labeled, unlabeled = resolve_dataset_names(cfg)
    enabled = cfg.SOFT_TEACHER.ENABLED
    names = class_names(cfg)
    return {
        CLASSES: names if names is None else list(names),
        NUM_PROCESSES: world_size,
        # After scaling: the GPUs that iterations are counted for, or 0.
        SCALE: cfg.SOLVER.REFERENCE_WORLD_SIZE,
        "SOFT_TEACHER.ENABLED": enabled,
        "SOFT_TEACHER.EMA.ENABLED": cfg.SOFT_TEACHER.EMA.ENABLED,
        "SOLVER.AMP.ENABLED": _precision(cfg),
        "SOLVER.IMS_PER_BATCH": cfg.SOLVER.IMS_PER_BATCH,
        "SOLVER.IMS_PER_BATCH_UNLABELED": cfg.SOLVER.IMS_PER_BATCH_UNLABELED if enabled else 0,
        "SOLVER.ACCUMULATION_STEPS": cfg.SOLVER.ACCUMULATION_STEPS,
        "DATALOADER.ASPECT_RATIO_GROUPING": _grouping(cfg),
        "DATASETS.TRAIN": list(labeled),
        "DATASETS.UNLABELED": list(unlabeled) if enabled else [],
        "SOFT_TEACHER.PSEUDO_LABELS.FILES": list(pseudo_label_files(cfg)) if enabled else [],
        "DATASETS.TEST": list(cfg.DATASETS.TEST),
        "SEED": cfg.SEED,
        **{key: cfg.SOLVER[key.removeprefix("SOLVER.")] for key in OF_OPTIMIZER},
    }


def _precision(cfg: CfgNode) -> bool | str:
    """Whether precision is mixed, and if so, whether in another type than the GPU's float16."""
    enabled = cfg.SOLVER.AMP.ENABLED
    return "in bfloat16" if enabled and cfg.MODEL.DEVICE == "cpu" else enabled


def _grouping(cfg: CfgNode) -> bool | str:
    """Whether images of like shape share batches, and if so, in how many groups but two."""
    grouping, num_groups = cfg.DATALOADER.ASPECT_RATIO_GROUPING, cfg.DATALOADER.ASPECT_RATIO_GROUPS
    return f"in {num_groups} groups" if grouping and num_groups != 2 else grouping


def differences(saved: dict, current: dict) -> dict[str, str]:
    """What differs between two descriptions, with a readable account; saved value first."""
    return {
        key: _account(key, saved[key], value) if key in saved else f"{key} was not recorded"
        for key, value in current.items()
        if key not in saved or saved[key] != value
    }


def cannot_be_accepted(saved: dict, current: dict) -> bool:
    """Whether a checkpoint means nothing to this run, whatever the user accepts.

    With other classes, or where an iteration of the recipe is another part of the training.
    """
    other_classes = CLASSES in saved and saved[CLASSES] != current.get(CLASSES)
    scales = (saved.get(SCALE, 0), current.get(SCALE, 0))
    return other_classes or (0 not in scales and scales[0] != scales[1])


def _account(key: str, saved: object, current: object) -> str:
    if key == SCALE and saved and current:
        return (
            f"its iterations are those of {saved} GPUs and this run's are those of {current} "
            f"({SCALE}). Processes times SOLVER.ACCUMULATION_STEPS must be {saved}, or {SCALE} 0 "
            "with batches, learning rate and iterations as they are to be from here"
        )
    if not (key == CLASSES and saved and current):
        return f"{key} was {saved!r} and is {current!r}"
    gone = [x for x in saved if x not in current]
    new = [x for x in current if x not in saved]
    if gone or new:
        return f"{key}: {len(saved)} and now {len(current)}, without {gone} and with {new}"
    return f"{key} have another order"
