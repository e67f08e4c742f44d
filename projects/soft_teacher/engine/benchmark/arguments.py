"""What the tools that measure a training step ask for on the command line."""

import argparse
from pathlib import Path

from soft_teacher.engine.benchmark.synthetic import BatchShape

TITLES = {
    "soft_teacher": "Soft Teacher, a step",
    "supervised": "(a) Detectron2, a supervised step",
    "inference": "(b) Detectron2, inference",
}
"""What is measured or counted, by the names that files have for it."""


def add_step_arguments(parser: argparse.ArgumentParser, config: Path) -> None:
    """Let a command line say what a step works on, and with which config."""
    parser.add_argument("--labeled", type=int, default=1, help="labeled images a step")
    parser.add_argument("--unlabeled", type=int, default=4, help="unlabeled images a step")
    parser.add_argument("--height", type=int, default=480, help="of the images, in pixels")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument(
        "--pseudo-boxes", type=int, default=17, help="boxes in each image, labeled ones too"
    )
    parser.add_argument("--config-file", type=Path, default=config)
    parser.add_argument("--json", type=Path, help="file to write all numbers to")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="keys of the config")


def step_shape(parser: argparse.ArgumentParser, args: argparse.Namespace) -> BatchShape:
    """What a step works on; the command ends if that makes no sense."""
    for name in ("labeled", "unlabeled", "height", "width"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be 1 or more")
    if args.pseudo_boxes < 0:
        parser.error("--pseudo-boxes must be 0 or more")
    return BatchShape(args.labeled, args.unlabeled, args.height, args.width, args.pseudo_boxes)
