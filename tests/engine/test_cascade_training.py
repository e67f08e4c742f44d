"""Detectron2's cascades in training, with and without masks, on several processes and exported."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.modeling.roi_heads import CascadeROIHeads

from cascades import CASCADE, NUM_STAGES
from masks import MASK_HEAD
from shares import largest_difference, results_of_one, results_of_two
from soft_teacher.config import load_config
from soft_teacher.engine.export import export_model
from test_mask_training import add_masks, run
from tiny_training import NARROW, checkpoint, unmoved, write_config

SUPERVISED = {
    "SOFT_TEACHER.ENABLED": False,
    "SOFT_TEACHER.EMA.ENABLED": False,
    "DATASETS.UNLABELED": (),
}
KINDS = {
    "Cascade R-CNN": CASCADE,
    "Cascade Mask R-CNN": {**CASCADE, **MASK_HEAD, "INPUT.MASK_FORMAT": "bitmask"},
}


def train(folder, **keys):
    """Two iterations on squares that have masks, the second with evaluation.

    Returns:
        What was logged, and the checkpoints after the first and the second iteration.
    """
    config_file = write_config(folder, SOLVER__MAX_ITER=2, **NARROW, **keys)
    for name in ("labeled", "val"):
        add_masks(folder / f"{name}.json")
    logged = run(config_file, folder / "out", SOLVER__CHECKPOINT_PERIOD=1)
    assert "skipped_steps" not in logged
    names = ("model_0000000.pth", "model_final.pth")
    return logged, *(checkpoint(folder / "out", name) for name in names)


def losses(suffix: str = "") -> set[str]:
    return {f"loss_{x}_stage{k}{suffix}" for x in ("cls", "box_reg") for k in range(NUM_STAGES)}


@pytest.mark.parametrize("kind", KINDS)
def test_soft_teacher_trains_a_cascade_that_stock_detectron2_can_use(tmp_path, kind):
    has_masks = "Mask" in kind
    logged, first, trained = train(tmp_path, **KINDS[kind])
    assert losses() | losses("_unsup") <= logged.keys()
    assert {f"background_weight_stage{k}" for k in range(NUM_STAGES)} <= logged.keys()
    for task, is_there in {"bbox": True, "segm": has_masks}.items():
        for model in ("student", "teacher"):
            assert (f"{model}/{task}/AP" in logged) == is_there
    for name in ("loss_mask", "loss_mask_unsup"):
        assert (min(logged.get(name, [0])) > 0) == has_masks
    for model in ("model", "teacher"):
        assert unmoved(first[model], trained[model], "roi_heads.") == []
    assert unmoved(trained["model"], trained["teacher"], "roi_heads.") == []

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
    found = predictor.model.state_dict()
    assert found.keys() == trained["teacher"].keys()
    assert all(torch.equal(found[k], v) for k, v in trained["teacher"].items())
    instances = predictor(np.zeros((64, 64, 3), dtype=np.uint8))["instances"]
    assert len(instances) > 0 and instances.has("pred_masks") == has_masks


@pytest.mark.parametrize("kind", KINDS)
def test_the_supervised_baseline_of_a_cascade_trains(tmp_path, kind):
    has_masks = "Mask" in kind
    logged, first, trained = train(tmp_path, **{**KINDS[kind], **SUPERVISED})
    assert losses() <= logged.keys() and not any(name.endswith("_unsup") for name in logged)
    assert (min(logged.get("loss_mask", [0])) > 0) == has_masks
    assert "student/bbox/AP" in logged and ("student/segm/AP" in logged) == has_masks
    assert unmoved(first["model"], trained["model"], "roi_heads.") == []


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
