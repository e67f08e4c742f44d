#!/usr/bin/env python3
"""Make the demo's detection set: handwritten digits on photographs, in COCO format."""

import argparse
import logging
from pathlib import Path

from soft_teacher.data.digits import write_dataset

logger = logging.getLogger(__name__)


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("datasets/digits"), help="folder")
    parser.add_argument("--labeled", type=int, default=40, help="annotated training scenes")
    parser.add_argument("--unlabeled", type=int, default=1160, help="training scenes without boxes")
    parser.add_argument("--val", type=int, default=200, help="validation scenes")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes")
    return parser.parse_args()


def main() -> None:
    """Make the set and name its files."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse_args()
    counts = {"labeled": args.labeled, "unlabeled": args.unlabeled, "val": args.val}
    for path in write_dataset(args.output, counts, args.seed).values():
        logger.info("wrote %s", path)


if __name__ == "__main__":
    main()
