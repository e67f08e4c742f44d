#!/usr/bin/env python3
"""Show what two models detect beside the ground truth, as in figure 4 of the paper.

    python tools/compare_models.py --config-file FILE --baseline CHECKPOINT \\
        --soft-teacher CHECKPOINT --num 10
    python tools/compare_models.py --config-file FILE --baseline CHECKPOINT \\
        --soft-teacher CHECKPOINT --images 139 000000000285.jpg

Of a Soft Teacher's checkpoint the teacher is taken, of the baseline's the student. Images are
chosen by id or file name, or they are those on which the two differ most: by the F1 score of each
image's detections above --min-score, at an IoU of 0.5 (2 * right / (detections + objects)). Each
becomes a JPEG file, and all are on a page, index.html. Any key of the config can be given at the
end, after --, as KEY VALUE pairs.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import BoxMode
from torch import nn

from soft_teacher.analysis.annotated_images import choose_model, records_with_truth
from soft_teacher.analysis.comparison_page import build_comparison_page
from soft_teacher.analysis.disagreement import f1_score, most_different
from soft_teacher.analysis.drawing import as_jpeg
from soft_teacher.analysis.prediction_pictures import Comparison, draw_comparison
from soft_teacher.config import load_config, lower_score_threshold, num_classes, settle_device
from soft_teacher.data import ImageMapper
from soft_teacher.data.datasets import class_names
from soft_teacher.data.image_files import ImageError
from soft_teacher.data.mapper import read_labeled_image
from soft_teacher.engine import load_models

# Title -> which model of its checkpoint.
MODELS = {"Baseline": "student", "Soft Teacher": "teacher"}
DEFAULT_OUTPUT = Path("output/compare_models")


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", type=Path, required=True, help="of either training")
    parser.add_argument("--baseline", type=Path, required=True, help="checkpoint or weights")
    parser.add_argument("--soft-teacher", type=Path, required=True, help="checkpoint or weights")
    parser.add_argument("--set", help="with ground truth (default: all of DATASETS.TEST)")
    parser.add_argument("--images", nargs="+", metavar="ID_OR_NAME", help="to show")
    parser.add_argument(
        "--num", type=int, default=8, help="images to show without --images (default: 8)"
    )
    parser.add_argument(
        "--min-score", type=float, default=0.5, help="of detections (default: %(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, help="folder (default: %(default)s)"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys")
    args = parser.parse_args(argv)
    for path in (args.config_file, args.baseline, args.soft_teacher):
        if not path.is_file():
            parser.error(f"there is no file {path}")
    if args.num < 1:
        parser.error(f"--num is {args.num}; it must be at least 1")
    if not 0 <= args.min_score < 1:
        parser.error(f"--min-score is {args.min_score}; it must lie in 0 to 1")
    if len(args.opts) % 2 == 1:
        parser.error(f"KEY VALUE pairs expected, not {' '.join(args.opts)}")
    return args


def find_records(cfg: CfgNode, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The images to look at, with annotations.

    Raises:
        ValueError: there is no ground truth, or an image is not in the set.
    """
    names = (args.set,) if args.set else tuple(cfg.DATASETS.TEST)
    records = records_with_truth(cfg, names) if names else []
    which = ", ".join(names) or "DATASETS.TEST"
    if not records:
        raise ValueError(f"There is no ground truth in {which}; name a set that has some by --set.")
    if not args.images:
        return records
    chosen = []
    for wanted in args.images:
        found = [x for x in records if wanted in names_of(x)]
        if not found:
            raise ValueError(f"--images names {wanted}, which is no id or file name in {which}.")
        chosen += found
    return chosen


def names_of(record: dict[str, Any]) -> set[str]:
    """What --images may call an image."""
    return {str(record["image_id"]), record["file_name"], Path(record["file_name"]).name}


def readable(cfg: CfgNode, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those records whose images can be read; the others are named.

    Raises:
        ValueError: none can.
    """
    found = []
    for record in records:
        try:
            read_labeled_image(record, "RGB", cfg.INPUT.MAX_PIXELS)
        except ImageError as error:
            print(f"{error}. It is left out", file=sys.stderr)
        else:
            found.append(record)
    if not found:
        raise ValueError(f"None of the {len(records)} images can be read; see the lines above.")
    return found


def detect(cfg: CfgNode, weights: Path, wanted: str, records: list[dict]) -> list[list[dict]]:
    """A model's detections in each image, in COCO's format, by the settings of evaluation."""
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS = str(weights)
    model = choose_model(load_models(cfg), wanted)
    return [_detect_in(model, ImageMapper(cfg)(record)) for record in records]


@torch.no_grad()
def _detect_in(model: nn.Module, view: dict[str, Any]) -> list[dict]:
    found = model([view])[0]["instances"].to("cpu")
    if found.has("pred_masks"):
        found.remove("pred_masks")  # not drawn, and slow to encode
    return instances_to_coco_json(found, view["image_id"])


def true_entries(record: dict[str, Any]) -> list[dict]:
    """The objects of a record in COCO's format, without crowds."""
    return [
        {
            "bbox": BoxMode.convert(list(x["bbox"]), x["bbox_mode"], BoxMode.XYWH_ABS),
            "category_id": x["category_id"],
        }
        for x in record["annotations"]
        if not x.get("iscrowd", 0)
    ]


def write_pictures(comparisons: list[Comparison], folder: Path) -> None:
    """Write each image's pictures to a JPEG file of their own, numbered as on the page."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, comparison in enumerate(comparisons, 1):
        # Not named after the image: what is in a data set decides nothing about files here.
        (folder / f"{number:03d}.jpg").write_bytes(as_jpeg(comparison.sheet()))


def main(argv: Sequence[str] | None = None) -> None:
    """Detect, choose, draw and say what was written."""
    args = parse_arguments(argv)
    cfg = load_config(str(args.config_file), args.opts)
    settle_device(cfg)
    # The detector itself drops what is below its own.
    lower_score_threshold(cfg, args.min_score)
    records = readable(cfg, find_records(cfg, args))
    objects = [true_entries(x) for x in records]
    weights = {"Baseline": args.baseline, "Soft Teacher": args.soft_teacher}
    found = {title: detect(cfg, weights[title], which, records) for title, which in MODELS.items()}
    scores = [
        tuple(f1_score(x[i], objects[i], args.min_score) for x in found.values())
        for i in range(len(records))
    ]
    shown = range(len(records)) if args.images else most_different(scores, args.num)
    classes = class_names(cfg) or [str(k) for k in range(num_classes(cfg))]
    comparisons = [
        draw_comparison(
            records[i]["file_name"],
            read_labeled_image(records[i], "RGB", cfg.INPUT.MAX_PIXELS),
            objects[i],
            {title: x[i] for title, x in found.items()},
            dict(enumerate(classes)),
            args.min_score,
        )
        for i in shown
    ]
    headings = [
        f"{records[i]['file_name']}: F1 {scores[i][0]:.2f} (baseline), {scores[i][1]:.2f} "
        "(Soft Teacher)"
        for i in shown
    ]
    write_pictures(comparisons, args.output)
    command = shlex.join(["python", "tools/compare_models.py", *(argv or sys.argv[1:])])
    page = args.output / "index.html"
    document = build_comparison_page(comparisons, headings, describe(args, scores), command)
    page.write_text(document, encoding="utf-8", errors="backslashreplace")
    print(
        *headings, f"Pictures: {len(comparisons)} in {args.output}", f"Page:     {page}", sep="\n"
    )


def describe(args: argparse.Namespace, scores: list[tuple[float, float]]) -> str:
    """What the page shows, in a sentence or two."""
    better = sum(b > a for a, b in scores)
    worse = sum(b < a for a, b in scores)
    choice = (
        "The chosen images"
        if args.images
        else f"The {min(args.num, len(scores))} of {len(scores)} images on which the F1 scores of "
        "the two models differ most"
    )
    return (
        f"{choice}, with all detections scored above {args.min_score:g}. On {better} of the "
        f"{len(scores)} images Soft Teacher has the higher F1 score (at an IoU of 0.5), on {worse} "
        "the baseline."
    )


if __name__ == "__main__":
    main()
