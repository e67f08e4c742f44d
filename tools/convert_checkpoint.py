#!/usr/bin/env python3
"""Turn a checkpoint of mmdetection, or of the official Soft Teacher, into one of this project.

    python tools/convert_checkpoint.py faster_rcnn_r50_fpn.pth --style pytorch
    python tools/convert_checkpoint.py soft_teacher_10pct.pth --output weights/official_10pct.pth
    python train_net.py --config-file weights/official_10pct.yaml --eval-only

It reads what mmdetection 2.x and 3.x save of Faster, Mask and Cascade R-CNN and HTC on a ResNet,
ResNeXt or Swin Transformer with a feature pyramid; of Soft Teacher both student and teacher. Two
files are written, the weights and the config with which they find what mmdetection finds. A weight
without a partner on the other side is an error, and no code in the file is run.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from soft_teacher.engine.mmdet_checkpoint import (
    Conversion,
    convert_checkpoint,
    numeric_differences,
)
from soft_teacher.engine.mmdet_checkpoint.config_of import STYLES


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="file of mmdetection")
    parser.add_argument(
        "--output", type=Path, help=".pth file to write (default: CHECKPOINT_converted.pth)"
    )
    parser.add_argument(
        "--style",
        choices=STYLES,
        help="of a ResNet: caffe has BGR images and strides in 1x1 convolutions, pytorch RGB and "
        "3x3 (default: what the file says, else caffe for Soft Teacher, pytorch for others)",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        help="of detections (default: mmdetection's, 0.001 for HTC and 0.05 for others)",
    )
    args = parser.parse_args(argv)
    if not args.checkpoint.is_file():
        parser.error(f"there is no file {args.checkpoint}")
    args.output = args.output or args.checkpoint.with_name(f"{args.checkpoint.stem}_converted.pth")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Write the files, and say what is in them."""
    args = parse_arguments(argv)
    try:
        done = convert_checkpoint(args.checkpoint, args.output, args.style, args.score_threshold)
    except ValueError as error:
        sys.exit(f"error: {error}")
    report(args.output, done)


def report(weights: Path, done: Conversion) -> None:
    """Print what was written, what was left out, and what differs."""
    names = {"model": "student", "teacher": "teacher"} if "teacher" in done.models else {}
    print(f"Found:   {done.architecture.name}")
    print(f"Weights: {weights} ({', '.join(names.get(x, x) for x in done.models)})")
    print(f"Config:  {done.config_file}")
    print(f"Tensors: {done.num_tensors} taken over")
    for kind, count in Counter(x.rpartition(".")[2] for x in done.dropped).items():
        print(f"Left out, as they carry nothing: {count} {kind}, from {done.dropped[0]} on")
    if done.left_behind:
        print(f"Other parts of the file, left behind: {', '.join(done.left_behind)}")
    for remark in done.remarks:
        print(f"Note: {remark}")
    print("Other than in mmdetection:")
    for note in numeric_differences(done.architecture):
        print(f"- {note}")


if __name__ == "__main__":
    main()
