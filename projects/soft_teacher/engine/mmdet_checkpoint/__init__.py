"""mmdetection's checkpoints, and the official Soft Teacher's, as this project's."""

from soft_teacher.engine.mmdet_checkpoint.architecture import detect_architecture
from soft_teacher.engine.mmdet_checkpoint.config_of import Settings, config_of, numeric_differences
from soft_teacher.engine.mmdet_checkpoint.conversion import Conversion, convert_checkpoint
from soft_teacher.engine.mmdet_checkpoint.names import convert_state
from soft_teacher.engine.mmdet_checkpoint.reading import MMDetFile, read_mmdet_file
from soft_teacher.engine.mmdet_checkpoint.shapes import Architecture

__all__ = [
    "Architecture",
    "Conversion",
    "MMDetFile",
    "Settings",
    "config_of",
    "convert_checkpoint",
    "convert_state",
    "detect_architecture",
    "numeric_differences",
    "read_mmdet_file",
]
