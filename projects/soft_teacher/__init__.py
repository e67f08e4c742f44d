"""Soft Teacher for Detectron2."""

import importlib.util

if importlib.util.find_spec("detectron2") is None:
    raise ImportError(
        "soft_teacher needs Detectron2: run `make setup`, or install upstream with "
        "pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2"
    )

from soft_teacher.config import add_soft_teacher_config, load_config

__version__ = "0.1.0"

__all__ = ["__version__", "add_soft_teacher_config", "load_config"]
