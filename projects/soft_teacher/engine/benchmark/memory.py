"""The largest memory that a training step takes, of Soft Teacher and of stock Detectron2."""

import multiprocessing
from pathlib import Path

import torch
from detectron2.config import CfgNode

from soft_teacher.engine.benchmark.building import (
    build_soft_teacher,
    build_supervised,
    without_options,
)
from soft_teacher.engine.benchmark.synthetic import BatchShape

BUILDERS = {"soft_teacher": build_soft_teacher, "supervised": build_supervised}
NUM_STEPS = 3


def measure_peaks(cfg: CfgNode, shape: BatchShape, stock_as_is: bool = False) -> dict[str, int]:
    """Peak memory of training in bytes, models and optimizer included, each in a fresh process.

    On a GPU this is what was allocated there; on the CPU what the process had resident at its
    peak, beyond what it had before the first model was built.

    Args:
        cfg: the config, which decides how the models are carried out.
        shape: what a step works on; the supervised one on as many images as the student sees.
        stock_as_is: stock Detectron2 as it comes, see `without_options`.
    """
    configs = {"soft_teacher": cfg, "supervised": without_options(cfg) if stock_as_is else cfg}
    peaks = {}
    for name, cfg in configs.items():
        # Memory that one process has given back to its allocator is not given back for another.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks[name] = pool.apply(_peak, (name, cfg, shape))
    return peaks


def _peak(name: str, cfg: CfgNode, shape: BatchShape) -> int:
    import soft_teacher.modeling  # noqa: F401  registers the models in this process

    before = _status("VmRSS")
    contender, *_ = BUILDERS[name](cfg, shape)
    for _ in range(NUM_STEPS):
        contender.run()
    if cfg.MODEL.DEVICE.startswith("cuda"):
        return torch.cuda.max_memory_allocated(cfg.MODEL.DEVICE)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    """A size in bytes that Linux keeps of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(f"{key}:"))
