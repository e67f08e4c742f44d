#!/usr/bin/env python3
"""Split a COCO annotation file into labeled and unlabeled parts.

    python tools/split_dataset.py instances_train2017.json
    python tools/split_dataset.py train.json --percent 5 --fold 1 2 3 --output splits
    python tools/split_dataset.py instances_train2017.json --from COCO_supervision.txt --percent 1

For every fold and percentage four files are written: {stem}.{fold}@{percent}.json,
{stem}.{fold}@{percent}-unlabeled.json, the labeled ids as .ids.txt and the checksums of all as
.sha256; by default into the folder semi_supervised beside the input, where the built-in sets
coco_semi_{fold}@{percent} expect those of instances_train2017.

With --from, somebody else's choice of labeled images is taken: a COCO file of them (such as those
of microsoft/SoftTeacher), Unbiased Teacher's COCO_supervision.txt, or a list of image ids.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from soft_teacher.data.coco_file import read_coco_content
from soft_teacher.data.split_files import read_split_file
from soft_teacher.data.splits import SplitWriter, choose_labeled, split_name


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("annotations", type=Path, help="COCO file that is to be split")
    parser.add_argument(
        "--percent", type=float, nargs="+", default=[1, 2, 5, 10], help="labeled share, in %%"
    )
    parser.add_argument(
        "--fold", type=int, nargs="+", default=[1, 2, 3, 4, 5], help="seeds of the choice"
    )
    parser.add_argument("--output", type=Path, help="folder for the files")
    parser.add_argument(
        "--keep-annotations",
        action="store_true",
        help="leave annotations in the unlabeled files, to measure pseudo labels by",
    )
    parser.add_argument(
        "--from", dest="source", type=Path, metavar="FILE", help="take the labeled images of FILE"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write all splits and say how many images each file has."""
    args = parse_arguments(argv)
    writer = SplitWriter(read_coco_content(str(args.annotations), ("images", "annotations")))
    folder = args.output or args.annotations.parent / "semi_supervised"
    folder.mkdir(parents=True, exist_ok=True)
    for name, labeled_ids in chosen_splits(args, writer):
        full_name = f"{args.annotations.stem}.{name}"
        counts = writer.write(labeled_ids, folder, full_name, args.keep_annotations)
        for path, count in counts.items():
            print(f"{path}: {count} images", flush=True)


def chosen_splits(args: argparse.Namespace, writer: SplitWriter) -> Iterator[tuple[str, set[int]]]:
    """Name and labeled ids of each split that is asked for."""
    if args.source is None:
        for fold in args.fold:
            for percent in args.percent:
                yield (
                    split_name(percent, fold),
                    choose_labeled(writer.image_ids, percent, fold),
                )
        return
    splits = read_split_file(args.source, writer.annotated_ids, args.percent, args.fold)
    for key, labeled_ids in splits.items():
        own_name = args.source.stem.removeprefix(f"{args.annotations.stem}.")
        yield own_name if key is None else split_name(*key), labeled_ids


if __name__ == "__main__":
    main()
