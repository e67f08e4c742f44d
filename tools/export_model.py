#!/usr/bin/env python3
"""Write the teacher or the student of a checkpoint as a plain Detectron2 model, or a traced one.

    python tools/export_model.py output/model_final.pth --model teacher
    python tools/export_model.py output/model_final.pth --model teacher --format torchscript

By default two files are written, the weights and a config that names them. Detectron2 alone runs
them, for example by detectron2.engine.DefaultPredictor; a model with parts of this project, such as
its backbones, also needs the project, to be imported before.

TorchScript and ONNX hold the computation itself and need neither: TorchScript runs with torch and
torchvision, ONNX with onnxruntime. Such a file is run on images of two sizes before it gets its
name, and must find what the model finds; otherwise the tool says why there is none. ONNX needs
pip install onnx onnxruntime.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from soft_teacher import load_config
from soft_teacher.engine.export import MODELS, export_model, needs_this_project
from soft_teacher.engine.traced_export import export_traced
from soft_teacher.engine.traced_inputs import example_images

SUFFIXES = {"weights": ".pth", "torchscript": ".ts", "onnx": ".onnx"}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="file that train_net.py saved")
    parser.add_argument("--model", choices=sorted(MODELS), required=True)
    parser.add_argument(
        "--config-file", type=Path, help="config of the training (default: config.yaml beside it)"
    )
    parser.add_argument(
        "--output", type=Path, help="file to write (default: CHECKPOINT_MODEL.pth beside it)"
    )
    parser.add_argument("--format", choices=list(SUFFIXES), default="weights", help="of the file")
    parser.add_argument(
        "--photo",
        type=Path,
        help="to trace with and to check the file on, better with objects (default: noise)",
    )
    parser.add_argument(
        "--device", default="cpu", help="that TorchScript will run on (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    args.config_file = args.config_file or args.checkpoint.with_name("config.yaml")
    for path in (args.checkpoint, args.config_file, *([args.photo] if args.photo else [])):
        if not path.is_file():
            parser.error(f"there is no file {path}")
    suffix = SUFFIXES[args.format]
    args.output = args.output or args.checkpoint.with_name(
        f"{args.checkpoint.stem}_{args.model}{suffix}"
    )
    if args.output.suffix != suffix:
        parser.error(f"--output is {args.output}; with --format {args.format} it ends in {suffix}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Write the file, or the files, and say how to load them."""
    args = parse_arguments(argv)
    cfg = load_config(str(args.config_file))
    if cfg.MODEL.ROI_HEADS.SOFT_NMS.ENABLED:
        print("What is written has Detectron2's NMS: soft-NMS stays in this project's evaluation.")
    if args.format == "weights":
        write_weights(args, cfg)
    else:
        write_traced(args, cfg)


def write_weights(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Write weights and config."""
    config_file = export_model(args.checkpoint, args.model, cfg, args.output)
    print(f"Weights: {args.output}")
    print(f"Config:  {config_file}")
    if needs_this_project(cfg):
        print(
            "This config needs the project for its backbone or class: import "
            "soft_teacher.modeling, and call soft_teacher.add_soft_teacher_config(cfg) before the "
            "file is merged."
        )
    else:
        print("Detectron2 loads both without this project.")


def write_traced(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Write TorchScript or ONNX."""
    cfg.MODEL.DEVICE = args.device
    images = example_images(cfg, args.photo)
    agreement = export_traced(args.checkpoint, args.model, cfg, args.output, args.format, images)
    print(f"Written: {args.output}")
    print(f"Checked: {agreement}.")
    if agreement.num_detections == 0:
        print("That says little, as nothing was found: give an image with objects by --photo.")


if __name__ == "__main__":
    main()
