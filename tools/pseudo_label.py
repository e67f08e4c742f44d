#!/usr/bin/env python3
"""Label images with a trained detector, for multi-stage training.

    python tools/pseudo_label.py --config-file configs/coco/supervised_R_50_FPN_10pct.yaml \\
        --weights output/coco/supervised_R_50_FPN_10pct/fold_1/model_final.pth \\
        --images coco_semi_1@10_unlabeled \\
        --output output/coco/supervised_R_50_FPN_10pct/fold_1/pseudo_labels.json

Written is a COCO file with a score for each box. Image names in it start from the set's image root,
category ids are those of the first set in DATASETS.TRAIN, and "info" has the settings and the
images that could not be read. Training takes the file by SOFT_TEACHER.PSEUDO_LABELS.FILES, see
configs/coco/multi_stage_R_50_FPN_10pct.yaml.

With --scales or --flip an image is looked at several times. All detections are merged by
non-maximum suppression, and each box that is left becomes the mean of those that it stands for.

The work can be stopped at any time: the same command goes on, with the same result. With other
settings it starts anew. Any key of the config can be given at the end of the command line, as KEY
VALUE pairs.
"""

import argparse
import glob
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils.file_io import PathManager

from soft_teacher.config import load_config, lower_score_threshold, settle_device
from soft_teacher.data import register_custom_datasets, resolve_dataset_names
from soft_teacher.data.coco_file import Record, read_coco_content
from soft_teacher.data.datasets import class_categories, image_records, missing_files
from soft_teacher.data.pseudo_label_files import images_folder, name_in_folder
from soft_teacher.engine import load_detector
from soft_teacher.engine.journal import Journal
from soft_teacher.engine.pseudo_labeling import (
    LabelingOptions,
    fingerprint,
    label_images,
    weights_digest,
    write_pseudo_labels,
)

PARTIAL_SUFFIX = ".partial"
INTERRUPTED = 128 + signal.SIGINT


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", type=Path, required=True, help="of the detector")
    parser.add_argument("--weights", required=True, help="its checkpoint")
    parser.add_argument(
        "--images",
        help="name of a set, COCO file, folder, glob pattern or text list "
        "(default: the set in DATASETS.UNLABELED)",
    )
    parser.add_argument(
        "--image-root", help="of a COCO file given by its path (default: the file's folder)"
    )
    parser.add_argument("--output", type=Path, required=True, help="COCO file to write")
    parser.add_argument(
        "--model",
        choices=("teacher", "student"),
        help="of a checkpoint with both (default: teacher)",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        help="keep boxes above it (default: SOFT_TEACHER.PSEUDO_LABELS.MIN_SCORE, 0.5)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=4,
        help="images at a time, padded to one size; 1 is what evaluation does (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--scales",
        type=int,
        nargs="+",
        default=[],
        metavar="PIXELS",
        help="shorter sides to look at each image with, up to TEST.AUG.MAX_SIZE of the longer one "
        "(default: once, as in evaluation)",
    )
    parser.add_argument("--flip", action="store_true", help="look at it in the mirror too")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys")
    args = parser.parse_args(argv)
    if not args.config_file.is_file():
        parser.error(f"there is no file {args.config_file}")
    if "://" not in args.weights and not os.path.isfile(args.weights):
        parser.error(f"there is no file {args.weights}")
    if args.batch_size < 1:
        parser.error(f"--batch-size is {args.batch_size}; it must be at least 1")
    if any(x < 1 for x in args.scales):
        parser.error(f"--scales are {args.scales}; they must be at least 1")
    if args.score_threshold is not None and not 0 <= args.score_threshold < 1:
        parser.error(f"--score-threshold is {args.score_threshold}; it must lie in 0 to 1")
    if len(args.opts) % 2 == 1:
        parser.error(f"KEY VALUE pairs expected, not {' '.join(args.opts)}")
    return args


def read_config(args: argparse.Namespace) -> tuple[CfgNode, LabelingOptions]:
    """The detector's config, with its weights, and how it is to label."""
    cfg = load_config(str(args.config_file), args.opts)
    settle_device(cfg)
    cfg.MODEL.WEIGHTS = args.weights
    threshold = args.score_threshold
    if threshold is None:
        threshold = cfg.SOFT_TEACHER.PSEUDO_LABELS.MIN_SCORE
    # Boxes that the model itself drops could not be kept.
    lower_score_threshold(cfg, threshold)
    soft_nms = cfg.MODEL.ROI_HEADS.SOFT_NMS
    soft_nms.ENABLED = soft_nms.ENABLED and soft_nms.PSEUDO_LABELS
    cfg.freeze()
    return cfg, LabelingOptions(threshold, args.batch_size, tuple(args.scales), args.flip)


def find_set(cfg: CfgNode, source: str | None, root: str | None) -> str:
    """Name of the set that is to be labeled; files and folders become sets of their own.

    Args:
        cfg: the config.
        source: --images.
        root: --image-root.

    Raises:
        ValueError: the config has not exactly one unlabeled set and no other is named.
    """
    register_custom_datasets(cfg)
    if source is None:
        _, unlabeled = resolve_dataset_names(cfg)
        if len(unlabeled) != 1:
            raise ValueError(
                f"DATASETS.UNLABELED names {len(unlabeled)} sets; say by --images which one is to "
                "be labeled. Each gets a file of its own."
            )
        return unlabeled[0]
    source = source.replace("{fold}", str(cfg.DATASETS.FOLD))
    if source in DatasetCatalog:
        return source
    if not (PathManager.exists(source) or glob.has_magic(source)):
        raise ValueError(
            f"--images {source} is no set of this config or of Detectron2, and no file, folder or "
            "glob pattern; look at its spelling."
        )
    is_file = source.endswith(".json")
    own = [source, source, root or os.path.dirname(source)] if is_file else [source, "", source]
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.CUSTOM = [own]
    register_custom_datasets(cfg)
    return source


def read_images(name: str) -> list[Record]:
    """Records of a set's images.

    Raises:
        ValueError: there is no image, or all are missing.
    """
    records = image_records(name)
    if len(missing_files(records)) == len(records):
        example = f", such as {records[0]['file_name']}" if records else ""
        raise ValueError(
            f"None of the {len(records)} images of the set {name} is there{example}; check its "
            "image root: --image-root, DATASETS.CUSTOM or DETECTRON2_DATASETS."
        )
    return records


def describe_images(name: str, records: list[Record]) -> list[dict[str, Any]]:
    """Id and name of each image in the file; ids are the set's own if they tell images apart."""
    folder = images_folder(name, records)
    ids = [record["image_id"] for record in records]
    if len(set(ids)) < len(ids):
        ids = range(1, len(records) + 1)
    return [
        {"id": i, "file_name": name_in_folder(record["file_name"], folder)}
        for i, record in zip(ids, records, strict=True)
    ]


def is_done(output: Path, mark: str) -> bool:
    """Whether the file is there and what this labeling would give.

    Raises:
        ValueError: the file is something else than pseudo labels, and would be overwritten.
    """
    if not output.exists():
        return False
    info = read_coco_content(str(output), ("images",)).get("info", {})
    if "fingerprint" not in info:
        raise ValueError(
            f"--output {output} is there, and no file of pseudo labels; it is not overwritten. "
            "Choose another name."
        )
    return info["fingerprint"] == mark


def main(argv: Sequence[str] | None = None) -> int:
    """Label, write and say what was found; returns the exit status."""
    args = parse_arguments(argv)
    cfg, options = read_config(args)
    name = find_set(cfg, args.images, args.image_root)
    records = read_images(name)
    images, categories = describe_images(name, records), class_categories(cfg)
    which, model = load_detector(cfg, args.model)
    mark = fingerprint(cfg, which, options, images, categories)
    if is_done(args.output, mark):
        print(f"{args.output} is there already, with these settings; delete it to label again")
        return 0
    args.output.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal(args.output.with_name(args.output.name + PARTIAL_SUFFIX), mark)
    try:
        label_images(cfg, model, records, options, journal)
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    info = {
        "description": "Pseudo labels: what a detector found, with scores",
        "images": os.path.basename(os.path.normpath(name)),
        "config": args.config_file.name,
        "weights": os.path.basename(args.weights),
        "weights_sha256": weights_digest(args.weights),
        "model": which,
        "score_threshold": options.score_threshold,
        "batch_size": options.batch_size,
        "scales": options.scales,
        "flip": options.flip,
        "fingerprint": mark,
    }
    summary = write_pseudo_labels(args.output, journal, images, categories, info)
    journal.remove()
    print(
        f"{args.output}: {summary.num_boxes} boxes with a score above "
        f"{options.score_threshold:g} in {summary.num_images} images"
    )
    if summary.unreadable:
        print(f"Unreadable images: {len(summary.unreadable)}, listed in its info")
    return 0


if __name__ == "__main__":
    sys.exit(main())
