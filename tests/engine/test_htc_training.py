"""HTC and mmdetection's Cascade Mask R-CNN in training, on several processes and exported."""

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultPredictor

from htc import CASCADE_MASK, HTC, NUM_STAGES, SEMANTIC, htc_config, write_semantic_maps
from shares import largest_difference, results_of_one, results_of_two
from soft_teacher import add_soft_teacher_config, load_config
from soft_teacher.engine.export import export_model, needs_this_project
from soft_teacher.engine.rehearsal.real_steps import take_steps
from soft_teacher.modeling import SoftTeacherHTCROIHeads
from test_mask_training import add_masks, run
from tiny_training import NARROW, checkpoint, unmoved, write_config

KINDS = {
    "HTC": {},
    "HTC with its semantic branch": SEMANTIC,
    "Cascade Mask R-CNN": CASCADE_MASK,
}
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
        DATASETS__SEMANTIC_ROOT=str(write_semantic_maps(folder)),
    )
    for name in ("labeled", "val"):
        add_masks(folder / f"{name}.json")
    return config_file


@pytest.mark.parametrize("kind", KINDS)
def test_soft_teacher_trains_every_stage_of_student_and_teacher(tmp_path, kind):
    config_file = write(tmp_path, **KINDS[kind])
    logged = run(config_file, tmp_path / "out", SOLVER__CHECKPOINT_PERIOD=1)
    assert losses() | losses("_unsup") <= logged.keys()
    assert all(min(logged[name]) > 0 for name in losses(tasks=["mask"]))
    assert all(max(logged[name]) > 0 for name in losses("_unsup", ["mask"]))
    assert ("loss_semantic" in logged) == (KINDS[kind] is SEMANTIC)
    assert "loss_semantic_unsup" not in logged
    assert {
        f"{m}/{t}/AP" for m in ("student", "teacher") for t in ("bbox", "segm")
    } <= logged.keys()
    assert {f"background_weight_stage{k}" for k in range(NUM_STAGES)} <= logged.keys()
    assert "skipped_steps" not in logged
    first, final = (checkpoint(tmp_path / "out", f"model_{x}.pth") for x in ("0000000", "final"))
    for model in ("model", "teacher"):
        assert unmoved(first[model], final[model], "roi_heads.") == []
    assert unmoved(final["model"], final["teacher"], "roi_heads.") == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_supervised_baseline_trains_every_stage(tmp_path, kind):
    config_file = write(tmp_path, **KINDS[kind])
    logged = run(config_file, tmp_path / "out", SOLVER__CHECKPOINT_PERIOD=1, **SUPERVISED)
    assert losses() <= logged.keys() and not losses("_unsup") & logged.keys()
    assert all(min(logged[name]) > 0 for name in losses(tasks=["mask"]))
    assert ("loss_semantic" in logged) == (KINDS[kind] is SEMANTIC)
    assert "student/segm/AP" in logged and "skipped_steps" not in logged
    first, final = (checkpoint(tmp_path / "out", f"model_{x}.pth") for x in ("0000000", "final"))
    assert unmoved(first["model"], final["model"], "roi_heads.") == []


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
