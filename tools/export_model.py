#!/usr/bin/env python3
"""Write the teacher or the student of a checkpoint as a plain Detectron2 model.

    python tools/export_model.py output/model_final.pth --model teacher

Two files are written, the weights and a config that names them. Detectron2 alone runs them, for
example by detectron2.engine.DefaultPredictor; a model with a timm backbone also needs this
project, to be imported before.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from soft_teacher import load_config
from soft_teacher.engine.export import MODELS, export_model, needs_this_project


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
        "--output", type=Path, help="weights to write (default: CHECKPOINT_MODEL.pth beside it)"
    )
    args = parser.parse_args(argv)
    args.config_file = args.config_file or args.checkpoint.with_name("config.yaml")
    for path in (args.checkpoint, args.config_file):
        if not path.is_file():
            parser.error(f"there is no file {path}")
    args.output = args.output or args.checkpoint.with_name(
        f"{args.checkpoint.stem}_{args.model}.pth"
    )
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Write both files and say how to load them."""
    args = parse_arguments(argv)
    cfg = load_config(str(args.config_file))
    config_file = export_model(args.checkpoint, args.model, cfg, args.output)
    print(f"Weights: {args.output}")
    print(f"Config:  {config_file}")
    if needs_this_project(cfg):
        print(
            "This config needs the project for its backbone: import soft_teacher.modeling, and "
            "call soft_teacher.add_soft_teacher_config(cfg) before the file is merged."
        )
    else:
        print("Detectron2 loads both without this project.")


if __name__ == "__main__":
    main()
