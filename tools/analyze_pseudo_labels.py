#!/usr/bin/env python3
"""Measure pseudo labels against ground truth, as in figure 3 of the paper.

    python tools/analyze_pseudo_labels.py --config-file FILE --weights CHECKPOINT
    python tools/analyze_pseudo_labels.py --config-file FILE --weights CHECKPOINT \\
        --set coco_2017_val --max-images 500 --output output/quality

The teacher labels weak views, as in training. Results are the precision and recall of the pseudo
boxes against the score threshold, and the rank correlations of their IoU with score and with box
regression variance: figures (PNG), tables (boxes.csv, thresholds.csv), summary.json and a page,
index.html. What is right, and which IoU is meant, stands in `analysis/localization_quality.py`
and on the page. Left in the folder "pseudo_labels" of a training of the demo, they enter its
report when tools/demo.py runs again. Any key of the config can be given at the end, as KEY VALUE
pairs.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from soft_teacher.analysis.annotated_images import (
    choose_model,
    draw_records,
    objects_in_view,
    records_with_truth,
    weak_view,
)
from soft_teacher.analysis.localization_quality import (
    MeasuredBoxes,
    correlations,
    join_images,
    measure_boxes,
    quality_at,
)
from soft_teacher.analysis.quality_files import read_quality, write_quality
from soft_teacher.analysis.quality_page import (
    build_quality_page,
    claim,
    correlation_table,
    main_rows,
)
from soft_teacher.analysis.results import text_table
from soft_teacher.config import (
    load_config,
    lower_score_threshold,
    num_classes,
    settle_device,
)
from soft_teacher.data.datasets import class_names
from soft_teacher.data.image_files import ImageError
from soft_teacher.engine import load_models

TABLE_THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95)


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", type=Path, required=True, help="of the training")
    parser.add_argument("--weights", type=Path, required=True, help="checkpoint or weights")
    parser.add_argument(
        "--set",
        help="with ground truth (default: DATASETS.UNLABELED if it has any, else DATASETS.TEST)",
    )
    parser.add_argument(
        "--model",
        choices=("teacher", "student"),
        default="teacher",
        help="of a checkpoint with both (default: %(default)s)",
    )
    parser.add_argument(
        "--max-images", type=int, help="as many, drawn at random (default: all of the set)"
    )
    parser.add_argument(
        "--min-score",
        type=float,
        default=0.05,
        help="lowest foreground score that is looked at (default: %(default)s); it takes the place "
        "of SOFT_TEACHER.PSEUDO_LABELS.MIN_SCORE",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default: 0)")
    parser.add_argument(
        "--resamples", type=int, default=1000, help="of the bootstrap (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, help='folder (default: "pseudo_labels" beside the weights)'
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys")
    args = parser.parse_args(argv)
    for path in (args.config_file, args.weights):
        if not path.is_file():
            parser.error(f"there is no file {path}")
    for option in ("max_images", "resamples"):
        if getattr(args, option) is not None and getattr(args, option) < 1:
            parser.error(f"--{option.replace('_', '-')} must be at least 1")
    if not 0 <= args.min_score < 1:
        parser.error(f"--min-score is {args.min_score}; it must lie in 0 to 1")
    if args.seed < 0:
        parser.error(f"--seed is {args.seed}; it must not be negative")
    if len(args.opts) % 2 == 1:
        parser.error(f"KEY VALUE pairs expected, not {' '.join(args.opts)}")
    args.output = args.output or args.weights.with_name("pseudo_labels")
    return args


def read_config(args: argparse.Namespace) -> CfgNode:
    """The config of the training, with the weights and the low score of the measurement.

    Raises:
        ValueError: box jittering is off, so that there is no variance.
    """
    cfg = load_config(str(args.config_file), args.opts)
    if not cfg.SOFT_TEACHER.JITTER.ENABLED:
        raise ValueError(
            "SOFT_TEACHER.JITTER.ENABLED is False, so no box regression variance is estimated; "
            "add SOFT_TEACHER.JITTER.ENABLED True to the command."
        )
    cfg.MODEL.WEIGHTS = str(args.weights)
    cfg.SOFT_TEACHER.PSEUDO_LABELS.MIN_SCORE = args.min_score
    # The detector itself drops what is below this.
    lower_score_threshold(cfg, args.min_score)
    settle_device(cfg)
    return cfg


def find_records(cfg: CfgNode, name: str | None) -> tuple[tuple[str, ...], list[dict[str, Any]]]:
    """The sets to measure on, and their records with annotations.

    Raises:
        ValueError: there is no ground truth.
    """
    choices = [(name,)] if name else [cfg.DATASETS.UNLABELED, cfg.DATASETS.TEST]
    for names in choices:
        records = records_with_truth(cfg, tuple(names)) if names else []
        if records:
            return tuple(names), records
    tried = ", ".join(x for names in choices for x in names) or "DATASETS.UNLABELED and TEST"
    raise ValueError(f"There is no ground truth in {tried}; name a set that has some with --set.")


def measure(
    cfg: CfgNode, model: nn.Module, samples: list[tuple[dict[str, Any], int]]
) -> tuple[MeasuredBoxes, list[str], list[str]]:
    """Let the model label the weak view of each image, and compare with its objects.

    Returns:
        The boxes; the names of the images that they are of; those of images that cannot be read,
        which are left out, as training sets them aside.

    Raises:
        ValueError: the model is none of Soft Teacher's, or no image can be read.
    """
    if not hasattr(model, "annotate"):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}, which makes no pseudo "
            "labels; use the config of a Soft Teacher."
        )
    images, names, unreadable = [], [], []
    for number, (record, sample_seed) in enumerate(samples, 1):
        try:
            view = weak_view(record, sample_seed, cfg)
        except ImageError as error:
            print(f"{error}. It is left out", file=sys.stderr)
            unreadable.append(record["file_name"])
            continue
        names.append(record["file_name"])
        # The jitter of one image does not depend on the images before it.
        torch.manual_seed(sample_seed % 2**63)
        guidance = model.annotate([view])
        variance = guidance.variance[0].cpu()
        labels = guidance.labels[0].to("cpu")
        images.append(measure_boxes(labels, variance, objects_in_view(record, view)))
        if number % 100 == 0:
            print(f"{number} of {len(samples)} images", flush=True)
    if not images:
        raise ValueError(f"None of the {len(samples)} images can be read; see the lines above.")
    return join_images(images), names, unreadable


def summarize(
    args: argparse.Namespace,
    cfg: CfgNode,
    boxes: MeasuredBoxes,
    names: tuple[str, ...],
    total: int,
    unreadable: list[str],
) -> dict[str, Any]:
    """All numbers but those of each box, and what they were made with."""
    labels, jitter = cfg.SOFT_TEACHER.PSEUDO_LABELS, cfg.SOFT_TEACHER.JITTER
    thresholds = [args.min_score, *(x for x in TABLE_THRESHOLDS if x > args.min_score)]
    return {
        "weights": str(args.weights),
        "model": args.model,
        "sets": ", ".join(names),
        "images": len(boxes.num_objects),
        "images_in_sets": total,
        "unreadable_images": ", ".join(unreadable) or "none",
        "objects": int(boxes.num_objects.sum()),
        "boxes": len(boxes),
        "seed": args.seed,
        "resamples": args.resamples,
        "cls_score": labels.CLS_SCORE,
        "reg_variance": labels.REG_VARIANCE,
        "num_jitter": jitter.NUM,
        "jitter_scale": jitter.SCALE,
        "variance_definition": jitter.VARIANCE,
        "thresholds": quality_at(boxes, thresholds),
        "correlations": correlations(boxes, args.min_score, args.resamples, args.seed),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write and say what was found."""
    args = parse_arguments(argv)
    cfg = read_config(args)
    names, records = find_records(cfg, args.set)
    samples = draw_records(records, args.max_images, args.seed)
    model = choose_model(load_models(cfg), args.model)
    boxes, file_names, unreadable = measure(cfg, model, samples)
    fine = [args.min_score, *(k / 100 for k in range(1, 100) if k / 100 > args.min_score)]
    write_quality(
        args.output,
        boxes,
        file_names,
        class_names(cfg) or [str(k) for k in range(num_classes(cfg))],
        quality_at(boxes, fine),
        summarize(args, cfg, boxes, names, len(records), unreadable),
    )
    summary, figures = read_quality(args.output)
    command = shlex.join(["python", "tools/analyze_pseudo_labels.py", *(argv or sys.argv[1:])])
    page = args.output / "index.html"
    document = build_quality_page(summary, figures, command)
    page.write_text(document, encoding="utf-8", errors="backslashreplace")
    print(text_table(*correlation_table(summary)))
    print(*map(claim, main_rows(summary)), f"Page: {page}", sep="\n")


if __name__ == "__main__":
    main()
