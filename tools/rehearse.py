#!/usr/bin/env python3
"""Rehearse the configs: what long trainings would do, found out in minutes and without data.

    python tools/rehearse.py                                  # all of configs/: build, compute
    python tools/rehearse.py --steps --output output/rehearsal.md
    python tools/rehearse.py --steps configs/coco/soft_teacher_R_50_FPN_10pct.yaml

Each config is read, its model, optimizer and augmentations are built without weights, and a table
shows what its numbers amount to: passes over each set, images in a step, learning rate per image,
steps over which the teacher averages. Numbers that do not go together are named.

With --steps two real steps follow for each Faster R-CNN, or for each config that is named, on the
CPU: one labeled and one unlabeled image at the largest scale of the config, random weights, every
detection a pseudo box. Each runs in a process of its own, whose peak memory may be 20 GiB. The exit
status is 1 if anything is wrong.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from tqdm import tqdm

from soft_teacher.config import load_config
from soft_teacher.engine.rehearsal.arithmetic import read_recipe
from soft_teacher.engine.rehearsal.building import build_all, find_recipes
from soft_teacher.engine.rehearsal.contradictions import contradictions
from soft_teacher.engine.rehearsal.real_steps import RehearsalError, take_steps_apart
from soft_teacher.engine.rehearsal.tables import Rehearsed, report
from soft_teacher.engine.schedule import scale_to_world_size

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "configs", nargs="*", type=Path, help="files (default: all recipes below configs/)"
    )
    parser.add_argument("--steps", action="store_true", help="take two real steps as well")
    parser.add_argument(
        "--num-gpus", type=int, metavar="K", help="numbers for K GPUs instead of each recipe's own"
    )
    parser.add_argument("--output", type=Path, help="file for the tables, in Markdown")
    parser.add_argument(
        "--console-dir",
        type=Path,
        default=Path("output/rehearsal"),
        help="folder for what the steps print (default: %(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Rehearse, print and write; returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.num_gpus is not None and args.num_gpus < 1:
        parser.error(f"--num-gpus is {args.num_gpus}; it must be at least 1")
    warnings.filterwarnings("ignore", message="No audio backend|torch.meshgrid")
    files = args.configs or find_recipes(CONFIGS)
    found = []
    with tqdm(total=len(files), desc="Rehearsing", unit=" configs") as progress:
        for file in files:
            progress.set_postfix_str(file.stem)
            found.append(rehearse(file, args, progress))
            progress.update()
    text = report(found)
    print(text)
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text)
    return int(any(x.problems for x in found))


def rehearse(file: Path, args: argparse.Namespace, progress: tqdm) -> Rehearsed:
    """All that is to be found out about one config."""
    found = Rehearsed(name_of(file))
    try:
        cfg = load_config(str(file))
        found.problems += contradictions(cfg, file.stem)
        found.recipe = read_recipe(of_gpus(cfg, args.num_gpus))
        found.parameters = build_all(cfg)
    except (ValueError, KeyError, AssertionError, RuntimeError, OSError) as error:
        found.problems.append(f"It cannot be built: {type(error).__name__}: {error}")
        return found
    if args.steps and (args.configs or is_faster_rcnn(cfg)):
        args.console_dir.mkdir(parents=True, exist_ok=True)
        console = args.console_dir / f"{found.name.replace('/', '_')}.txt"
        try:
            # In a file, each refreshed line would be one more.
            on_poll = progress.refresh if sys.stderr.isatty() else lambda: None
            found.steps = take_steps_apart(file, [], console, on_poll)
        except RehearsalError as error:
            found.problems.append(str(error))
        found.note_memory()
    return found


def name_of(file: Path) -> str:
    """The path of a config from configs/, without ".yaml"; that of any other as it is."""
    absolute = file.resolve()
    inside = absolute.is_relative_to(CONFIGS)
    return str((absolute.relative_to(CONFIGS) if inside else file).with_suffix(""))


def of_gpus(cfg: CfgNode, num_gpus: int | None) -> CfgNode:
    """The config as it would be trained on so many GPUs, on its own number if that is None."""
    if num_gpus is None:
        return cfg
    return scale_to_world_size(cfg, num_gpus)


def is_faster_rcnn(cfg: CfgNode) -> bool:
    """Whether the model is a Faster R-CNN."""
    model = cfg.MODEL
    names = (model.META_ARCHITECTURE, model.ROI_HEADS.NAME)
    return names == ("SoftTeacherRCNN", "SoftTeacherROIHeads") and not model.MASK_ON


if __name__ == "__main__":
    sys.exit(main())
