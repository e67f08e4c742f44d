"""Split a COCO annotation file into labeled and unlabeled parts.

For every fold and percentage two files are written, {stem}.{fold}@{percent}.json and
{stem}.{fold}@{percent}-unlabeled.json, by default into the folder semi_supervised beside the
input, where the built-in sets coco_semi_{fold}@{percent} expect those of instances_train2017.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from soft_teacher.data.splits import write_split


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations", type=Path, help="COCO file that is to be split")
    parser.add_argument(
        "--percents", type=float, nargs="+", default=[1, 2, 5, 10], help="labeled share, in %%"
    )
    parser.add_argument(
        "--folds", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="seeds of the choice"
    )
    parser.add_argument("--output", type=Path, help="folder for the files")
    parser.add_argument(
        "--keep-annotations",
        action="store_true",
        help="leave annotations in the unlabeled files, to measure pseudo labels by",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write all splits and say how many images each file has."""
    args = parse_arguments(argv)
    data = json.loads(args.annotations.read_text())
    folder = args.output or args.annotations.parent / "semi_supervised"
    folder.mkdir(parents=True, exist_ok=True)
    for fold in args.folds:
        for percent in args.percents:
            counts = write_split(
                data, folder, args.annotations.stem, percent, fold, args.keep_annotations
            )
            for path, count in counts.items():
                print(f"{path}: {count} images", flush=True)


if __name__ == "__main__":
    main()
