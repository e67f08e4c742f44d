"""Training: one step, the teacher, checkpoints and what is seen meanwhile."""

from soft_teacher.engine.checkpointing import SoftTeacherCheckpointer
from soft_teacher.engine.evaluation import (
    evaluate_models,
    evaluate_with_tta,
    load_detector,
    load_models,
)
from soft_teacher.engine.launching import launch_training
from soft_teacher.engine.process_place import count_cpus
from soft_teacher.engine.trainer import SoftTeacherTrainer

__all__ = [
    "SoftTeacherCheckpointer",
    "SoftTeacherTrainer",
    "count_cpus",
    "evaluate_models",
    "evaluate_with_tta",
    "launch_training",
    "load_detector",
    "load_models",
]
