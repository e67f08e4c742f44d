"""HTC in training, on several processes and out of the project again."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor
from PIL import Image

from htc import CASCADE_MASK, HTC, NUM_SEMANTIC, NUM_STAGES, SEMANTIC, htc_config
from shares import largest_difference, results_of_one, results_of_two
from soft_teacher import add_soft_teacher_config, load_config
from soft_teacher.engine.export import export_model, needs_this_project
from soft_teacher.engine.rehearsal.real_steps import take_steps
from soft_teacher.modeling import SoftTeacherHTCROIHeads
from test_mask_training import add_masks, run
from tiny_training import NARROW, NUM_LABELED, checkpoint, write_config

SUPERVISED = {
    "SOFT_TEACHER__ENABLED": False,
    "SOFT_TEACHER__EMA__ENABLED": False,
    "DATASETS__UNLABELED": (),
}


def losses(suffix: str = "", tasks=("cls", "box_reg", "mask")) -> set[str]:
    return {f"loss_{x}_stage{k}{suffix}" for x in tasks for k in range(NUM_STAGES)}


def write(folder, **keys):
    """A config of two iterations with HTC on squares that have masks."""
    config_file = write_config(
        folder,
        **{**HTC, **NARROW, **keys},
        INPUT__MASK_FORMAT="bitmask",
        SOLVER__MAX_ITER=2,
        DATASETS__SEMANTIC_ROOT=str(folder / "maps"),
    )
    for name in ("labeled", "val"):
        add_masks(folder / f"{name}.json")
    (folder / "maps").mkdir()
    for i in range(NUM_LABELED):
        labels = np.random.default_rng(i).integers(0, NUM_SEMANTIC, (64, 64), dtype=np.uint8)
        Image.fromarray(labels).save(folder / "maps" / f"labeled_{i}.png")
    return config_file


def test_soft_teacher_trains_htc_with_its_semantic_branch(tmp_path):
    config_file = write(tmp_path, **SEMANTIC)
    logged = run(config_file, tmp_path / "out")
    assert losses() | losses("_unsup") | {"loss_semantic"} <= logged.keys()
    assert "loss_semantic_unsup" not in logged
    assert {
        f"{m}/{t}/AP" for m in ("student", "teacher") for t in ("bbox", "segm")
    } <= logged.keys()
    assert {f"background_weight_stage{k}" for k in range(NUM_STAGES)} <= logged.keys()
    assert "skipped_steps" not in logged
    final = checkpoint(tmp_path / "out")
    for name, before in final["teacher"].items():
        is_trained = name.startswith("roi_heads.") and name.endswith("weight")
        assert not is_trained or not torch.equal(before, final["model"][name]), name


def test_the_supervised_baseline_of_htc_trains(tmp_path):
    logged = run(write(tmp_path), tmp_path / "out", **SUPERVISED)
    assert losses() <= logged.keys() and not losses("_unsup") & logged.keys()
    assert "student/segm/AP" in logged and "loss_semantic" not in logged


@pytest.mark.parametrize("keys", [SEMANTIC, CASCADE_MASK])
def test_an_exported_model_finds_the_same_with_this_package_imported(tmp_path, keys):
    config_file = write(tmp_path, **keys, MODEL__ROI_HEADS__SCORE_THRESH_TEST=0.1)
    run(config_file, tmp_path / "out", SOLVER__MAX_ITER=1, TEST__EVAL_PERIOD=0)
    cfg = load_config(str(config_file))
    assert needs_this_project(cfg)
    exported = export_model(
        tmp_path / "out" / "model_final.pth", "teacher", cfg, tmp_path / "exported.pth"
    )
    plain = get_cfg()
    add_soft_teacher_config(plain)
    plain.merge_from_file(str(exported), allow_unsafe=False)
    plain.MODEL.DEVICE = "cpu"
    predictor = DefaultPredictor(plain)
    assert type(predictor.model.roi_heads) is SoftTeacherHTCROIHeads
    trained = checkpoint(tmp_path / "out")["teacher"]
    found = predictor.model.state_dict()
    assert found.keys() == trained.keys()
    assert all(torch.equal(found[k], trained[k]) for k in found)
    assert plain.MODEL.ROI_HTC == cfg.MODEL.ROI_HTC
    assert len(predictor(np.zeros((64, 64, 3), dtype=np.uint8))["instances"]) > 0


def test_a_rehearsal_makes_up_maps_for_the_semantic_branch(tmp_path):
    cfg = htc_config(**NARROW, **SEMANTIC, INPUT__MIN_SIZE_TRAIN=(64,), SOLVER__STEPS=())
    taken = take_steps(cfg, tmp_path)
    assert losses() | losses("_unsup") | {"loss_semantic"} <= taken.losses.keys()


def test_two_processes_with_common_normalizers_train_its_boxes_as_one(tmp_path):
    """One process has many pseudo boxes, the other hardly any."""
    keys = {**HTC, "MODEL.MASK_ON": False}
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    expected = results_of_one(one, {"htc": (2, 1, "rank", keys)})["htc"]
    found = results_of_two(two, {"htc": (2, 1, "global", keys)})["htc"][0]
    assert losses("_unsup", ("cls", "box_reg")) <= found["logged"][0].keys()
    for logged, wanted in zip(found["logged"], expected["logged"], strict=True):
        assert logged == {k: pytest.approx(v, rel=1e-5, abs=1e-7) for k, v in wanted.items()}
    for gradients, others in zip(found["gradients"], expected["gradients"], strict=True):
        assert largest_difference(gradients, others) < 0.02
