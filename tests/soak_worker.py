"""A long training in a process of its own, which measures itself every so many steps.

    python soak_worker.py CONFIG FOLDER STEPS PERIOD

Trains twice with the same seed, to FOLDER/first and FOLDER/second, and writes what is measured,
see :func:`measure`, to FOLDER/first.jsonl and FOLDER/second.jsonl: a line every PERIOD steps, and
one more when all is over.
"""

import ctypes
import gc
import json
import os
import sys
import time
from pathlib import Path

import torch
from detectron2.engine import HookBase, default_argument_parser

import train_net
from soft_teacher.engine.trainer import SoftTeacherTrainer

LIBC = ctypes.CDLL(None)


def measure(output: Path) -> dict[str, float]:
    """Private memory of this process in bytes, and counts of what it holds, opened and wrote."""
    # Cycles are collected, and freed memory is given back, now or later; only what stays counts.
    gc.collect()
    LIBC.malloc_trim(0)
    # By type: isinstance would follow a weak reference to what is gone.
    tensors = sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    sizes = {x.split(":")[0]: x.split()[1] for x in rollup[1:]}
    tasks = list(Path("/proc/self/task").iterdir())
    return {
        "memory": 1024 * int(sizes["Anonymous"]),
        "tensors": tensors,
        "files_open": len(list(Path("/proc/self/fd").iterdir())),
        "threads": len(tasks),
        "children": sum(len((x / "children").read_text().split()) for x in tasks),
        "files_written": sum(x.is_file() for x in output.rglob("*")),
        # Of the processor: those of the clock depend on what else the machine does.
        "seconds": time.process_time(),
    }


class Measurements(HookBase):
    """Measures after every `period` steps, and at once writes it beside the output folder."""

    def __init__(self, output: Path, period: int):
        self._output = output
        self._period = period

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._period == 0:
            self.note(self.trainer.iter + 1)

    def note(self, step: int) -> None:
        with self._output.with_suffix(".jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **measure(self._output)}) + "\n")


def train(config: str, output: Path, steps: int, period: int) -> None:
    """Train under measurement."""
    torch.set_num_threads(1)
    hook = Measurements(output, period)
    build_hooks = SoftTeacherTrainer.build_hooks
    SoftTeacherTrainer.build_hooks = lambda self: [*build_hooks(self), hook]
    options = {
        "SOLVER.MAX_ITER": steps,
        "SOLVER.CHECKPOINT_PERIOD": period,
        "SOLVER.CHECKPOINTS_TO_KEEP": 2,
        "TEST.EVAL_PERIOD": 3 * period,
        "DATALOADER.NUM_WORKERS": 1,
        "OUTPUT_DIR": output,
    }
    arguments = ["--config-file", config, *(str(x) for pair in options.items() for x in pair)]
    torch.manual_seed(0)
    train_net.main(default_argument_parser().parse_args(arguments))
    hook.note(steps)


def main(config: str, folder: str, steps: str, period: str) -> None:
    """Train twice, each time in a process that has imported everything already."""
    for name in ("first", "second"):
        pid = os.fork()
        if pid == 0:
            train(config, Path(folder, name), int(steps), int(period))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if status != 0:
            sys.exit(f"The {name} training failed with status {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
