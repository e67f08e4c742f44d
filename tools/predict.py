#!/usr/bin/env python3
"""Find objects in images and videos with a trained detector.

    python tools/predict.py --weights output/mine_teacher.pth --input photos --output output/found
    python tools/predict.py --weights output/mine/model_final.pth --model student \\
        --input one.jpg 'more/**/*.png' clip.mp4 --output output/found

The weights are what tools/export_model.py wrote or a checkpoint of a training. Input is any number
of images, folders (searched recursively), glob patterns, text lists of images (.txt, one path a
line) and videos. In the output folder are then results.json, the detections in COCO's format for
results, with masks if the model has them; images.json, which says what their image and category
ids are and which files could not be read; and, unless --no-pictures, pictures/ and videos/. Boxes
are in pixels of the upright image. Any key of the config can be given at the end, after --, as KEY
VALUE pairs.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from tqdm import tqdm

from soft_teacher.config import head_section, load_config, settle_device
from soft_teacher.data.prediction_inputs import find_inputs
from soft_teacher.engine.evaluation import load_detector
from soft_teacher.engine.model_classes import model_categories
from soft_teacher.engine.prediction import PredictionOptions
from soft_teacher.engine.prediction_output import PredictionOutput
from soft_teacher.engine.prediction_run import PredictionRun

INTERRUPTED = 128 + signal.SIGINT


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True, help="exported file or checkpoint")
    parser.add_argument(
        "--config-file",
        type=Path,
        help="of the model (default: beside the weights, of the same name or config.yaml)",
    )
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="images, folders, glob patterns, text lists, videos",
    )
    parser.add_argument("--output", type=Path, required=True, help="new folder to write to")
    parser.add_argument(
        "--model",
        choices=("teacher", "student"),
        help="of a checkpoint with both (default: teacher)",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.5,
        help="keep detections above it (default: %(default)s)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=1,
        help="images at a time, padded to one size (default: %(default)s, as in evaluation)",
    )
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: CUDA if there is any)")
    parser.add_argument(
        "--no-pictures", dest="pictures", action="store_false", help="write results alone"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys")
    args = parser.parse_args(argv)
    args.config_file = args.config_file or config_beside(args.weights)
    for path in (args.weights, args.config_file):
        if not path.is_file():
            parser.error(f"there is no file {path}")
    if args.batch_size < 1:
        parser.error(f"--batch-size is {args.batch_size}; it must be at least 1")
    if not 0 <= args.score_threshold < 1:
        parser.error(f"--score-threshold is {args.score_threshold}; it must lie in 0 to 1")
    if len(args.opts) % 2 == 1:
        parser.error(f"KEY VALUE pairs expected, not {' '.join(args.opts)}")
    return args


def config_beside(weights: Path) -> Path:
    """The config that was exported with the weights, or that a training left in its folder."""
    exported = weights.with_suffix(".yaml")
    return exported if exported.is_file() else weights.with_name("config.yaml")


def read_config(args: argparse.Namespace) -> CfgNode:
    """The detector's config, with its weights."""
    cfg = load_config(str(args.config_file), args.opts)
    cfg.MODEL.WEIGHTS = str(args.weights)
    if args.device is not None:
        cfg.MODEL.DEVICE = args.device
    settle_device(cfg)
    # What is not kept needs no mask. Higher scores do not depend on lower ones: suppression goes
    # from the highest down.
    cfg.MODEL[head_section(cfg)].SCORE_THRESH_TEST = args.score_threshold
    cfg.freeze()
    return cfg


def main(argv: Sequence[str] | None = None) -> int:
    """Detect, draw, write and say what was found; returns the exit status."""
    args = parse_arguments(argv)
    cfg = read_config(args)
    inputs = find_inputs(args.input)
    which, model = load_detector(cfg, args.model)
    output = PredictionOutput(args.output, model_categories(cfg, args.weights))
    options = PredictionOptions(args.score_threshold, args.batch_size, args.pictures)
    run = PredictionRun(cfg, model, options, output, report=tqdm.write)
    try:
        run.add_images(inputs.images)
        for path in inputs.videos:
            run.add_video(path)
    except KeyboardInterrupt:
        print("Stopped; results are written in the end only", file=sys.stderr)
        return INTERRUPTED
    output.write(
        {
            "description": "Images that a detector has looked at; results.json has what it found",
            "weights": args.weights.name,
            "model": which,
            "score_threshold": options.score_threshold,
        }
    )
    print(
        f"{args.output}: {len(output.results)} detections with a score above "
        f"{options.score_threshold:g} in {len(output.images)} images"
    )
    if output.unreadable:
        print(f"Unreadable: {len(output.unreadable)}, listed in the info of images.json")
    return 0 if output.images else 1


if __name__ == "__main__":
    sys.exit(main())
