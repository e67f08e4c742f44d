#!/usr/bin/env python3
"""Turn a detector of other classes into a start for a config's: rows of shared classes are kept.

    python tools/transfer_classes.py --weights old.pth --from-classes old_train.json \\
        --config-file my_data/config.yaml --output weights/start.pth

Classes are matched by name, whatever their case; a few that Objects365 spells otherwise than COCO
are known. What does not depend on classes is carried over as it is. Other classes start as in a
training without this file, and so do masks and the semantic branch if the old detector has none.
Anything else that differs is an error. The result is for MODEL.WEIGHTS.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng

from soft_teacher import load_config
from soft_teacher.config import settle_device, without_weights
from soft_teacher.data.coco_file import load_categories
from soft_teacher.data.datasets import class_categories
from soft_teacher.engine.atomic_file import open_atomically
from soft_teacher.engine.class_transfer import (
    ClassMatch,
    Transferred,
    match_classes,
    transfer_classes,
)
from soft_teacher.engine.export import MODELS
from soft_teacher.engine.model_classes import KEY
from soft_teacher.safe_loading import load_tensors


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", type=Path, required=True, help="of the old detector")
    parser.add_argument(
        "--from-classes",
        type=Path,
        required=True,
        help="its classes: the COCO file that it learned from, or a JSON list of their names in "
        "the detector's order",
    )
    parser.add_argument(
        "--config-file", type=Path, required=True, help="of the new detector, with its classes"
    )
    parser.add_argument("--output", type=Path, required=True, help=".pth file to write")
    parser.add_argument(
        "--model",
        choices=sorted(MODELS),
        default="teacher",
        help="of a checkpoint with both (default: %(default)s)",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys")
    args = parser.parse_args(argv)
    for path in (args.weights, args.from_classes, args.config_file):
        if not path.is_file():
            parser.error(f"there is no file {path}")
    if args.output.suffix != ".pth" or args.output.exists():
        parser.error(f"--output is {args.output}; name a new file that ends in .pth")
    if len(args.opts) % 2 == 1:
        parser.error(f"KEY VALUE pairs expected, not {' '.join(args.opts)}")
    return args


def read_state(path: Path, model: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, of a file of weights, or of a bare state dict.

    Raises:
        ValueError: the file holds something else.
    """
    content = load_tensors(str(path))
    if isinstance(content, dict) and set(MODELS.values()) <= set(content):
        content = content[MODELS[model]]
    elif isinstance(content, dict) and "model" in content:
        content = content["model"]
    is_state = isinstance(content, dict) and content
    if not is_state or not all(isinstance(x, torch.Tensor) for x in content.values()):
        raise ValueError(f"{path} holds no model; give a checkpoint or a file of weights.")
    return content


def read_names(path: Path) -> list[str]:
    """Names of classes, in a detector's order.

    Raises:
        ValueError: the file has none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"--from-classes: {path} is no JSON file: {error}.") from error
    if isinstance(content, list):
        if not content or not all(isinstance(x, str) for x in content):
            raise ValueError(f"--from-classes: {path} is a list, but not one of names.")
        return content
    return [x["name"] for x in load_categories(str(path))]


def new_model(cfg: CfgNode) -> torch.nn.Module:
    """The new detector with the random weights of SEED."""
    seed_all_rng(cfg.SEED if cfg.SEED >= 0 else None)
    return build_model(without_weights(cfg))


def report(matches: Sequence[ClassMatch], names: Sequence[str], found: Transferred) -> list[str]:
    """What went where, a line each."""
    by_name = [x for x in matches if x.old is not None and not x.by_alias]
    by_alias = [f"{x.name} ({names[x.old]})" for x in matches if x.by_alias]
    fresh = [x.name for x in matches if x.old is None]
    parts = dict.fromkeys(".".join(x.split(".")[:2]) for x in found.fresh)
    return [
        f"{len(by_name)} of {len(matches)} classes have the rows of the same name: "
        f"{', '.join(x.name for x in by_name) or 'none'}",
        f"{len(by_alias)} those of another name: {', '.join(by_alias) or 'none'}",
        f"{len(fresh)} start afresh: {', '.join(fresh) or 'none'}",
        f"{len(found.fresh)} tensors start afresh that the old detector has nothing of: "
        f"{', '.join(parts) or 'none'}",
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Write the file, and say what is in it."""
    args = parse_arguments(argv)
    cfg = load_config(str(args.config_file), args.opts)
    settle_device(cfg)
    try:
        names, categories = read_names(args.from_classes), class_categories(cfg)
        matches = match_classes(names, [x["name"] for x in categories])
        old = read_state(args.weights, args.model)
        found = transfer_classes(old, new_model(cfg), cfg, matches, len(names))
    except ValueError as error:
        sys.exit(f"error: {error}")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    state = {name: x.cpu() for name, x in found.state.items()}
    with open_atomically(str(args.output)) as file:
        torch.save({"model": state, KEY: categories}, file)
    print("\n".join([f"Weights: {args.output}", *report(matches, names, found)]))


if __name__ == "__main__":
    main()
