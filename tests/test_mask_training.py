"""Mask R-CNN trained by train_net.py on a few tiny images, with and without unlabeled ones."""

import json
import math
from pathlib import Path

import pytest
import torch
from detectron2.engine import default_argument_parser

import train_net
from masks import MASK_HEAD
from tiny_training import NARROW, checkpoint, write_config


@pytest.fixture
def config_file(tmp_path):
    """A config of six iterations, with evaluation after every two; polygons and run lengths."""
    keys = {k.replace(".", "__"): v for k, v in MASK_HEAD.items()}
    path = write_config(tmp_path, **NARROW, **keys, INPUT__MASK_FORMAT="bitmask")
    for name in ("labeled", "val"):
        add_masks(tmp_path / f"{name}.json")
    return path


def add_masks(json_file: Path) -> None:
    """Give the squares of an annotation file masks, by turns of both kinds."""
    content = json.loads(json_file.read_text())
    for annotation in content["annotations"]:
        x, y, side, _ = annotation["bbox"]
        end = 64 - y - side
        runs = [64 * x + y, side, *[end + y, side] * (side - 1), end + 64 * (64 - x - side)]
        polygon = [[x, y, x + side, y, x + side, y + side, x, y + side]]
        coded = {"size": [64, 64], "counts": runs}
        annotation["segmentation"] = polygon if annotation["id"] % 2 else coded
    json_file.write_text(json.dumps(content))


def run(config_file: Path, output: Path, **opts) -> dict[str, list[float]]:
    """Train; all values that are logged under each name."""
    arguments = ["--config-file", str(config_file), "OUTPUT_DIR", str(output)]
    arguments += [str(x) for k, v in opts.items() for x in (k.replace("__", "."), v)]
    torch.manual_seed(0)
    train_net.main(default_argument_parser().parse_args(arguments))
    logged: dict[str, list[float]] = {}
    for line in (output / "metrics.json").read_text().splitlines():
        for name, value in json.loads(line).items():
            logged.setdefault(name, []).append(value)
    return logged


def test_both_models_are_trained_and_evaluated_by_boxes_and_masks(config_file, tmp_path):
    logged = run(config_file, tmp_path / "out")
    for task in ("bbox", "segm"):
        for model in ("student", "teacher"):
            assert math.isfinite(logged[f"{model}/{task}/AP"][-1])
    assert min(logged["loss_mask"]) > 0 and min(logged["loss_mask_unsup"]) > 0
    assert all(0 < x <= 1 for x in logged["pseudo_mask_agreement"])
    assert (tmp_path / "out" / "model_best_teacher.pth").is_file()
    final = checkpoint(tmp_path / "out")
    name = "roi_heads.mask_head.predictor.weight"
    assert not torch.equal(final["model"][name], final["teacher"][name])


def test_the_supervised_baseline_has_a_mask_loss_on_labeled_images_alone(config_file, tmp_path):
    keys = {"SOFT_TEACHER__ENABLED": False, "SOFT_TEACHER__EMA__ENABLED": False}
    logged = run(config_file, tmp_path / "out", SOLVER__MAX_ITER=2, **keys)
    assert min(logged["loss_mask"]) > 0
    assert not any("unsup" in name or "teacher" in name for name in logged)
    assert math.isfinite(logged["student/segm/AP"][-1])
