"""Trainings that are resumed from any of their checkpoints, in one process or in two."""

import copy
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

import train_net
from tiny_training import checkpoint

MAX_ITER, EVAL_PERIOD = 7, 3
# Every iteration of the whole training is saved.
WHOLE = ["SOLVER.MAX_ITER", MAX_ITER, "TEST.EVAL_PERIOD", EVAL_PERIOD]
WHOLE += ["SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.CHECKPOINTS_TO_KEEP", 100, "VIS_PERIOD", 0]
# Other periods of saving do not matter to what is saved.
RESUMED = [*WHOLE, "SOLVER.CHECKPOINT_PERIOD", 2]


def train(config: str | Path, output: str | Path, *options: Any) -> None:
    """Run train_net.py here; paths may be texts."""
    torch.set_num_threads(1)
    arguments = ["--config-file", config, *options, "OUTPUT_DIR", output]
    torch.manual_seed(0)
    train_net.main(default_argument_parser().parse_args([str(x) for x in arguments]))


def resume(
    config: str | Path,
    whole: Path,
    stop: int,
    output: Path,
    *options: Any,
    change: Callable[[dict], None] | None = None,
) -> None:
    """Go on as if the training in `whole` had been killed after the checkpoint of `stop`.

    Args:
        config: of the training.
        whole: where every iteration is saved.
        stop: an iteration.
        output: a new folder.
        options: KEY VALUE pairs.
        change: what to do to the content of the checkpoint first.
    """
    if comm.is_main_process():
        output.mkdir()
        name = f"model_{stop:07d}.pth"
        if change is None:
            shutil.copy(whole / name, output)
        else:
            content = copy.deepcopy(checkpoint(whole, name))
            change(content)
            torch.save(content, output / name)
        (output / "last_checkpoint").write_text(name)
    comm.synchronize()
    train(config, output, "--resume", *options)


def forget_second_process(content: dict) -> None:
    content["random_states"][1] = content["random_states"][0]


def resume_at_each(config: str, folder: str | Path, stops: list[int], *options: Any) -> None:
    """A whole training in FOLDER/whole and resumed ones in FOLDER/STOP."""
    place = Path(folder)
    train(config, place / "whole", *WHOLE, *options)
    for stop in stops:
        resume(config, place / "whole", stop, place / str(stop), *RESUMED, *options)


def train_and_resume(config: str, folder: str, stops: list[int]) -> None:
    """A whole training in FOLDER/W/whole and resumed ones in FOLDER/W/STOP, with W workers.

    What goes on with another random state on the second process goes to FOLDER/0/forgot.
    """
    if comm.get_world_size() > 1:
        # Such processes spawn their workers, each of which would take seconds to import torch.
        multiprocessing.set_start_method("forkserver", force=True)
        multiprocessing.set_forkserver_preload(["train_net"])
    for num_workers in (0, 2):
        place = Path(folder, str(num_workers))
        resume_at_each(config, place, stops, "DATALOADER.NUM_WORKERS", num_workers)
    if comm.get_world_size() > 1:
        place = Path(folder, "0")
        target = place / "forgot"
        resume(config, place / "whole", stops[-1], target, *RESUMED, change=forget_second_process)
