#!/usr/bin/env python3
r"""Make the files that COCO's evaluation server takes, for sets whose annotations are kept secret.

    python train_net.py --config-file CONFIG --eval-only MODEL.WEIGHTS output/model_final.pth \
        DATASETS.TEST '("coco_2017_test-dev",)'
    python tools/coco_submission.py \
        OUTPUT_DIR/inference/teacher/coco_2017_test-dev/coco_instances_results.json \
        --images $DETECTRON2_DATASETS/coco/annotations/image_info_test-dev2017.json \
        --method soft_teacher --output output/submission

The first command detects; there is nothing to evaluate with, and it says so. The second checks
every detection and writes bbox/detections_test-dev2017_soft_teacher_results.zip, and the same below
segm/ if there are masks. Nothing is uploaded.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from soft_teacher.engine.coco_submission import (
    entries_of_task,
    read_image_set,
    read_results,
    tasks_of,
    write_submission,
)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="Detectron2's coco_instances_results.json")
    parser.add_argument(
        "--images", type=Path, required=True, help="COCO's image_info_*.json of the set"
    )
    parser.add_argument("--method", required=True, help="name in the names of the files")
    parser.add_argument("--set", help="name of the set, if the name of --images does not tell")
    parser.add_argument("--output", type=Path, default=Path("output/submission"), help="folder")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check and write; returns the exit status."""
    args = make_parser().parse_args(argv)
    try:
        images = read_image_set(args.images, args.set)
        entries = read_results(args.results)
        # All are checked before anything is written.
        checked = {task: entries_of_task(entries, task, images) for task in tasks_of(entries)}
        for task, own in checked.items():
            path = write_submission(own, images, args.method, args.output / task)
            num_images = len({x["image_id"] for x in own})
            print(f"{path}: {len(own)} detections in {num_images} of {len(images.sizes)} images")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
