"""What two runs must share so that one can go on where the other stopped."""

from detectron2.config import CfgNode

from soft_teacher.data import resolve_dataset_names


def describe_run(cfg: CfgNode, world_size: int) -> dict:
    """The settings on which the meaning of a checkpoint's counters and states depends."""
    labeled, unlabeled = resolve_dataset_names(cfg)
    enabled = cfg.SOFT_TEACHER.ENABLED
    return {
        "number of processes": world_size,
        "SOFT_TEACHER.ENABLED": enabled,
        "SOLVER.AMP.ENABLED": cfg.SOLVER.AMP.ENABLED,
        "SOLVER.IMS_PER_BATCH": cfg.SOLVER.IMS_PER_BATCH,
        "SOLVER.IMS_PER_BATCH_UNLABELED": cfg.SOLVER.IMS_PER_BATCH_UNLABELED if enabled else 0,
        "DATASETS.TRAIN": list(labeled),
        "DATASETS.UNLABELED": list(unlabeled) if enabled else [],
        "SEED": cfg.SEED,
    }


def differences(saved: dict, current: dict) -> list[str]:
    """Readable differences between two descriptions, saved value first."""
    return [
        f"{key} was {saved.get(key)!r} and is {value!r}"
        for key, value in current.items()
        if saved.get(key) != value
    ]
