"""A cascade in training, on several processes and out of the project again."""

import json

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor, default_argument_parser
from detectron2.modeling.roi_heads import CascadeROIHeads

import train_net
from cascades import CASCADE, NUM_STAGES
from shares import largest_difference, results_of_one, results_of_two
from soft_teacher.config import load_config
from soft_teacher.engine.export import export_model
from tiny_training import NARROW, checkpoint, write_config

SUPERVISED = {
    "SOFT_TEACHER.ENABLED": False,
    "SOFT_TEACHER.EMA.ENABLED": False,
    "DATASETS.UNLABELED": (),
}


def train(folder, **keys):
    """Two iterations, the second with evaluation; what was logged."""
    config_file = write_config(folder, SOLVER__MAX_ITER=2, **CASCADE, **NARROW, **keys)
    arguments = ["--config-file", str(config_file), "OUTPUT_DIR", str(folder / "out")]
    train_net.main(default_argument_parser().parse_args(arguments))
    lines = (folder / "out" / "metrics.json").read_text().splitlines()
    return {k for line in lines for k in json.loads(line)}


def losses(suffix: str = "") -> set[str]:
    return {f"loss_{x}_stage{k}{suffix}" for x in ("cls", "box_reg") for k in range(NUM_STAGES)}


def test_soft_teacher_trains_a_cascade_that_stock_detectron2_can_use(tmp_path):
    logged = train(tmp_path)
    assert losses() | losses("_unsup") | {"student/bbox/AP", "teacher/bbox/AP"} <= logged
    assert {f"background_weight_stage{k}" for k in range(NUM_STAGES)} <= logged

    exported = export_model(
        tmp_path / "out" / "model_final.pth",
        "teacher",
        load_config(str(tmp_path / "config.yaml")),
        tmp_path / "exported.pth",
    )
    stock = get_cfg()
    stock.merge_from_file(str(exported), allow_unsafe=False)
    stock.MODEL.DEVICE = "cpu"
    predictor = DefaultPredictor(stock)
    assert type(predictor.model.roi_heads) is CascadeROIHeads
    trained = checkpoint(tmp_path / "out")["teacher"]
    found = predictor.model.state_dict()
    assert found.keys() == trained.keys()
    assert all(torch.equal(found[k], trained[k]) for k in found)
    assert len(predictor(np.zeros((64, 64, 3), dtype=np.uint8))["instances"]) > 0


def test_the_supervised_baseline_of_a_cascade_trains(tmp_path):
    logged = train(tmp_path, **SUPERVISED)
    assert losses() <= logged and not losses("_unsup") & logged
    assert "student/bbox/AP" in logged


def test_two_processes_with_common_normalizers_train_a_cascade_as_one(tmp_path):
    """The normalizers of all stages: one process has many pseudo boxes, the other hardly any."""
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    expected = results_of_one(one, {"cascade": (2, 1, "rank", CASCADE)})["cascade"]
    found = results_of_two(two, {"cascade": (2, 1, "global", CASCADE)})["cascade"][0]
    assert losses("_unsup") <= found["logged"][0].keys()
    for logged, wanted in zip(found["logged"], expected["logged"], strict=True):
        assert logged == {k: pytest.approx(v, rel=1e-5, abs=1e-7) for k, v in wanted.items()}
    # Boxes that earlier stages moved by a rounding more may turn the sign of an L1 loss.
    for gradients, others in zip(found["gradients"], expected["gradients"], strict=True):
        assert largest_difference(gradients, others) < 0.02
