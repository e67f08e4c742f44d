"""Real steps of training with a config, on one labeled and one unlabeled image, on the CPU.

Run as a program it is a process of its own, whose memory is that of the training alone, and
writes what it measured to a file.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.utils.events import EventStorage

from soft_teacher.config import (
    load_config,
    lower_score_threshold,
    num_classes,
    without_weights,
)
from soft_teacher.engine.benchmark.comparison import peak_memory
from soft_teacher.engine.benchmark.synthetic import settle_frozen_norms
from soft_teacher.engine.child_process import last_lines, run_command
from soft_teacher.engine.rehearsal.made_up_images import (
    HEIGHT,
    WIDTH,
    with_made_up_images,
    write_images,
)
from soft_teacher.engine.trainer import SoftTeacherTrainer

NUM_STEPS = 2


@dataclass(frozen=True)
class StepsTaken:
    """What the steps were like.

    Attributes:
        size: height and width of the views.
        seconds: of each step, images included.
        peak_memory: resident memory of the whole process, bytes.
        losses: of the last step, by name.
    """

    size: tuple[int, int]
    seconds: tuple[float, ...]
    peak_memory: int
    losses: dict[str, float]


class RehearsalError(RuntimeError):
    """The steps could not be taken; the message ends in what the process said."""


def take_steps_apart(
    config_file: Path, overrides: list[str], console: Path, on_poll: Callable[[], None]
) -> StepsTaken:
    """Take the steps in a process of its own.

    Args:
        config_file: the config.
        overrides: KEY VALUE pairs.
        console: file for what the process prints.
        on_poll: called every second or so.

    Raises:
        RehearsalError: the process failed.
    """
    console.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", __name__, str(answer), str(config_file), *overrides]
        code = run_command(command, console, on_poll)
        if code != 0:
            reason = "\n".join(last_lines(console))
            raise RehearsalError(f"The steps ended with exit code {code}, see {console}:\n{reason}")
        content = json.loads(answer.read_text())
    return StepsTaken(
        tuple(content["size"]), tuple(content["seconds"]), content["peak_memory"], content["losses"]
    )


def rehearsal_config(cfg: CfgNode, folder: Path) -> CfgNode:
    """A copy of the config for steps on one labeled and one unlabeled image on the CPU.

    All of the teacher's detections teach everything, as many as it can give: a random model is
    never sure of any, and this is the most work that an image can make.
    """
    files = write_images(folder, num_classes(cfg), seed=0)
    cfg = without_weights(with_made_up_images(cfg, files))
    cfg.MODEL.DEVICE = "cpu"
    solver, labels = cfg.SOLVER, cfg.SOFT_TEACHER.PSEUDO_LABELS
    solver.REFERENCE_WORLD_SIZE, solver.ACCUMULATION_STEPS = 0, 1
    solver.IMS_PER_BATCH = solver.IMS_PER_BATCH_UNLABELED = 1
    cfg.SOFT_TEACHER.BURN_IN_ITERS = 0
    lower_score_threshold(cfg, 0.0)
    labels.MIN_SCORE = labels.RPN_SCORE = labels.CLS_SCORE = 0.0
    labels.REG_VARIANCE = float("inf")
    return cfg


def take_steps(cfg: CfgNode, folder: Path) -> StepsTaken:
    """Take the steps in this process.

    Args:
        cfg: the config as it is.
        folder: for images and what a training writes.

    Raises:
        FloatingPointError: a step was skipped for a value that is not finite.
    """
    cfg = rehearsal_config(cfg, folder)
    size = T.ResizeShortestEdge.get_output_shape(
        HEIGHT, WIDTH, cfg.INPUT.MIN_SIZE_TRAIN[0], cfg.INPUT.MAX_SIZE_TRAIN
    )
    torch.manual_seed(0)
    trainer = SoftTeacherTrainer(cfg)
    noise = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    settle_frozen_norms(trainer.student, [{"image": noise}])
    # The teacher begins as the settled student.
    trainer.resume_or_load(resume=False)
    seconds = []
    with EventStorage() as storage:
        for _ in range(NUM_STEPS):
            start = time.perf_counter()
            trainer.run_step()
            trainer.scheduler.step()
            seconds.append(time.perf_counter() - start)
        logged = {name: value for name, (value, _) in storage.latest().items()}
    if logged.get("skipped_steps"):
        raise FloatingPointError("A step was skipped for a value that is not finite, see above.")
    losses = {name: value for name, value in logged.items() if name.startswith("loss")}
    return StepsTaken(size, tuple(seconds), peak_memory(torch.device("cpu")), losses)


def main(arguments: list[str]) -> None:
    """Take the steps and write the answer: ANSWER_FILE CONFIG_FILE KEY VALUE ..."""
    answer, config_file, *overrides = arguments
    taken = take_steps(load_config(config_file, overrides), Path(answer).parent)
    Path(answer).write_text(json.dumps(asdict(taken)))


if __name__ == "__main__":
    main(sys.argv[1:])
