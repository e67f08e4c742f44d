"""RetinaNet and FCOS under the unchanged trainer: resumed, shared out, exported, counted."""

import json

import pytest
import torch
from detectron2.modeling import RetinaNet, build_backbone, build_model
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.utils.events import EventStorage

import one_stage_worker
from ddp_worker import launch_two
from one_stage import DETECTORS, RETINANET, annotated, config, student_of, sure
from resumed_trainings import RESUMED, WHOLE, resume, train
from soft_teacher.config import lower_score_threshold
from soft_teacher.data.datasets import check_num_classes
from soft_teacher.engine.benchmark.comparison import measure
from soft_teacher.engine.benchmark.synthetic import BatchShape
from soft_teacher.engine.checkpointing import SoftTeacherCheckpointer
from soft_teacher.engine.export import export_model, needs_this_project, read_model
from soft_teacher.engine.hidden_state import HiddenState
from tiny import NUM_CLASSES, labeled_view, plain_view, tiny_config
from tiny_training import assert_same, checkpoint, write_config

BOTH = pytest.mark.parametrize("name", list(DETECTORS))
NORMALIZERS = {"loss_normalizer", "unsup_cls_normalizer", "unsup_reg_normalizer"}


def learn(student: torch.nn.Module, *seeds: int) -> dict[str, torch.Tensor]:
    views = [plain_view(1)]
    for seed in seeds:
        with EventStorage():
            losses = student([labeled_view(seed)], views, sure(annotated(student, views)))
    return losses


@BOTH
def test_all_three_normalizers_are_saved_and_restored_to_the_bit(name, tmp_path):
    student = student_of(name)
    state = HiddenState(student)
    checkpointer = SoftTeacherCheckpointer(student, str(tmp_path))
    learn(student, 1, 2)
    assert state.state_dict()[""].keys() == NORMALIZERS
    checkpointer.save("model", iteration=1)

    other = student_of(name)
    restored = SoftTeacherCheckpointer(other, str(tmp_path))
    learn(other, 3)
    restored.load_training(str(tmp_path / "model.pth"))
    for key in NORMALIZERS:
        assert getattr(other, key) == getattr(student, key)
    found, expected = learn(other, 4), learn(student, 4)
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_a_training_with_pseudo_labels_is_resumed_exactly(tmp_path):
    keys = {**RETINANET, "MODEL__RETINANET__SCORE_THRESH_TEST": 0.0, "DATASETS__TEST": ()}
    low = {
        "SOFT_TEACHER__PSEUDO_LABELS__MIN_SCORE": 0.005,
        "SOFT_TEACHER__PSEUDO_LABELS__CLS_SCORE": 0.005,
    }
    config_file = write_config(tmp_path, **keys, **low)
    whole = tmp_path / "whole"
    train(config_file, whole, *WHOLE)
    assert checkpoint(whole)["hidden_states"][0][""].keys() == NORMALIZERS
    resume(config_file, whole, 3, tmp_path / "resumed", *RESUMED)
    assert_same(checkpoint(tmp_path / "resumed"), checkpoint(whole))

    def forget(content: dict) -> None:
        for key in NORMALIZERS - {"loss_normalizer"}:
            del content["hidden_states"][0][""][key]

    resume(config_file, whole, 3, tmp_path / "forgot", *RESUMED, change=forget)
    with pytest.raises(AssertionError):
        assert_same(checkpoint(tmp_path / "forgot")["model"], checkpoint(whole)["model"])


def test_two_processes_stay_alike_and_keep_their_own_normalizers(tmp_path):
    launch_two(one_stage_worker.train, tmp_path)
    for name in DETECTORS:
        first, second = (
            torch.load(tmp_path / f"{name}_{rank}.pth", weights_only=True) for rank in (0, 1)
        )
        assert first["missing"] == second["missing"] == []
        assert first["skipped"] == second["skipped"] == 0
        assert_same(first["student"], second["student"])
        assert first["normalizer"] != second["normalizer"]


@BOTH
def test_mixed_precision_trains_and_leaves_boxes_in_full(name, tmp_path):
    keys = {
        **DETECTORS[name],
        "SOLVER__AMP__ENABLED": True,
        "SOFT_TEACHER__JITTER__ENABLED": False,
        # Of smaller images the last level is one location, and oneDNN's gradient of a convolution
        # of it is now and then not finite in bfloat16.
        "INPUT__MIN_SIZE_TRAIN": (256,),
        "MODEL__RETINANET__SCORE_THRESH_TEST": 0.0,
        "MODEL__FCOS__SCORE_THRESH_TEST": 0.0,
        "DATASETS__TEST": (),
    }
    low = {f"SOFT_TEACHER__PSEUDO_LABELS__{x}": 0.001 for x in ("MIN_SCORE", "CLS_SCORE")}
    config_file = write_config(tmp_path, SOLVER__MAX_ITER=2, VIS_PERIOD=0, **keys, **low)
    train(config_file, tmp_path / "out")
    rows = (tmp_path / "out/metrics.json").read_text().splitlines()
    logged = {k: v for row in rows for k, v in json.loads(row).items()}
    assert "skipped_steps" not in logged
    # RetinaNet's losses are named after Faster R-CNN's.
    boxes = "loss_fcos_loc" if name == "fcos" else "loss_box_reg"
    assert logged[boxes] > 0 and logged[f"{boxes}_unsup"] > 0

    student = student_of(name).eval()
    images = student.preprocess_image([plain_view(1)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, (logits, deltas, *_) = student._predict(images.tensor)
    assert {x.dtype for x in logits} == {torch.bfloat16}
    assert {x.dtype for x in deltas} == {torch.float32}


@pytest.fixture(params=list(DETECTORS))
def training(request, tmp_path):
    """Name, teacher and a checkpoint of an untrained detector."""
    student, teacher = student_of(request.param, 1), student_of(request.param, 2)
    checkpointer = SoftTeacherCheckpointer(student, str(tmp_path), teacher=teacher)
    checkpointer.save("model_final")
    return request.param, teacher.eval(), tmp_path / "model_final.pth"


def stock(name: str, cfg) -> torch.nn.Module:
    """Detectron2's own class; FCOS has to be put together in Python."""
    if name == "retinanet":
        cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
        return build_model(cfg)
    backbone = build_backbone(cfg)
    head = FCOSHead(
        input_shape=list(backbone.output_shape().values()),
        num_classes=NUM_CLASSES,
        conv_dims=[64],
        norm="GN",
    )
    return FCOS(
        backbone=backbone,
        head=head,
        head_in_features=cfg.MODEL.FCOS.IN_FEATURES,
        num_classes=NUM_CLASSES,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    )


def test_either_model_of_a_checkpoint_loads_into_detectron2s_own_class(training):
    name, _, file = training
    for which in ("student", "teacher"):
        stock(name, config(name)).load_state_dict(read_model(file, which), strict=True)


def test_an_exported_model_is_detectron2s_where_its_yaml_knows_the_class(training, tmp_path):
    name, teacher, file = training
    cfg = config(name)
    if name == "retinanet":
        cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    assert needs_this_project(cfg) == (name == "fcos")
    exported = export_model(file, "teacher", cfg, tmp_path / "exported.pth")
    plain = tiny_config()
    plain.merge_from_file(str(exported), allow_unsafe=False)
    plain.MODEL.DEVICE = "cpu"
    model = build_model(plain).eval()
    if name == "retinanet":
        assert type(model) is RetinaNet
        return
    model.load_state_dict(torch.load(tmp_path / "exported.pth", weights_only=True)["model"])
    with torch.no_grad():
        found, expected = (x([plain_view(1)])[0]["instances"] for x in (model, teacher))
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


@BOTH
def test_the_number_of_classes_is_asked_where_the_architecture_keeps_it(name):
    cfg = config(name)
    check_num_classes(cfg, ["a", "b", "c"], "my_set")
    section = {"retinanet": "RETINANET", "fcos": "FCOS"}[name]
    with pytest.raises(ValueError, match=rf"MODEL\.{section}\.NUM_CLASSES is 3.* set it to 2"):
        check_num_classes(cfg, ["a", "b"], "my_set")
    lower_score_threshold(cfg, 0.01)
    assert cfg.MODEL[section].SCORE_THRESH_TEST == 0.01
    assert cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.05


@BOTH
def test_a_step_of_it_can_be_measured(name):
    found = measure(config(name), BatchShape(1, 1, 64, 64, 2), num_rounds=2, num_warmup=0)
    assert found.pseudo_boxes == {"cls": 2, "reg": 2}
    assert found.overhead_ratio["min"] > 0


def test_a_pyramid_to_p7_needs_the_levels_that_it_is_built_on():
    wrong = config("fcos", MODEL__RESNETS__OUT_FEATURES=["res2", "res3", "res4", "res5"])
    with pytest.raises(ValueError, match=r"MODEL\.RESNETS\.OUT_FEATURES gives the levels"):
        build_backbone(wrong)


def test_a_network_of_timm_gets_the_levels_p3_to_p7():
    pytest.importorskip("timm")
    keys = {"MODEL__TIMM__NAME": "resnet18", "MODEL__TIMM__OUT_INDICES": (2, 3, 4)}
    cfg = config("fcos", MODEL__BACKBONE__NAME="build_timm_p6p7_fpn_backbone", **keys)
    backbone = build_backbone(cfg)
    maps = backbone(torch.rand(1, 3, 128, 256))
    assert {k: tuple(v.shape[1:]) for k, v in maps.items()} == {
        f"p{level}": (64, 128 // 2**level, 256 // 2**level) for level in (3, 4, 5, 6, 7)
    }
    assert {k: v.stride for k, v in backbone.output_shape().items()} == {
        f"p{level}": 2**level for level in (3, 4, 5, 6, 7)
    }
