#!/usr/bin/env python3
"""Show the images that a training sees first, augmented, with their boxes.

    python tools/visualize_data.py --config-file configs/demo/soft_teacher_lite0_FPN.yaml
    python tools/visualize_data.py --config-file FILE --num 20 --set unlabeled --html views.html

Labeled images come with their ground truth, unlabeled ones as weak and strong view side by side.
Any key of the config can be given at the end of the command line, as KEY VALUE pairs.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from soft_teacher import load_config
from soft_teacher.analysis.data_page import build_page, write_pictures
from soft_teacher.analysis.data_pictures import draw_labeled_samples, draw_unlabeled_samples
from soft_teacher.engine.schedule import scale_to_world_size

DEFAULT_OUTPUT = Path("output/visualize_data")
DRAW = {"labeled": draw_labeled_samples, "unlabeled": draw_unlabeled_samples}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", type=Path, required=True, help="of the training")
    parser.add_argument("--output", type=Path, help="folder for the pictures, as JPEG files")
    parser.add_argument(
        "--html",
        type=Path,
        help="page with the pictures in it (default, if --output is not given either: both, in "
        f"{DEFAULT_OUTPUT})",
    )
    parser.add_argument("--num", type=int, default=8, help="images of each set (default: 8)")
    parser.add_argument(
        "--set",
        choices=(*DRAW, "both"),
        help="(default: both, or labeled where SOFT_TEACHER.ENABLED is False)",
    )
    parser.add_argument(
        "--seed", type=int, help="in place of the config's SEED (default: 0 if that is negative)"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys")
    args = parser.parse_args(argv)
    if not args.config_file.is_file():
        parser.error(f"there is no file {args.config_file}")
    if args.num < 1:
        parser.error(f"--num is {args.num}; it must be at least 1")
    if args.seed is not None and args.seed < 0:
        parser.error(f"--seed is {args.seed}; it must not be negative")
    if len(args.opts) % 2 == 1:
        parser.error(f"KEY VALUE pairs expected, not {' '.join(args.opts)}")
    if args.output is None and args.html is None:
        args.output, args.html = DEFAULT_OUTPUT, DEFAULT_OUTPUT / "index.html"
    return args


def read_config(args: argparse.Namespace) -> CfgNode:
    """The config as training in one process has it, but for the loaders' workers and OUTPUT_DIR."""
    cfg = scale_to_world_size(load_config(str(args.config_file), args.opts), 1)
    # The loader lists unreadable images there: not among the files of a training.
    cfg.OUTPUT_DIR = str(args.output or args.html.parent)
    cfg.DATALOADER.NUM_WORKERS = 0
    # A negative seed stands for one that training draws: nobody can tell what it will see.
    cfg.SEED = max(0, cfg.SEED) if args.seed is None else args.seed
    return cfg


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, write and say what was written."""
    args = parse_arguments(argv)
    cfg = read_config(args)
    chosen = args.set or ("both" if cfg.SOFT_TEACHER.ENABLED else "labeled")
    samples = {kind: draw(cfg, args.num) for kind, draw in DRAW.items() if chosen in (kind, "both")}
    if args.output is not None:
        files = write_pictures(samples, args.output)
        print(f"Pictures: {len(files)} in {args.output}, {files[0].name} to {files[-1].name}")
    if args.html is not None:
        args.html.parent.mkdir(parents=True, exist_ok=True)
        # Names of files need not be valid text.
        page = build_page(samples, cfg)
        args.html.write_text(page, encoding="utf-8", errors="backslashreplace")
        print(f"Page:     {args.html}")


if __name__ == "__main__":
    main()
