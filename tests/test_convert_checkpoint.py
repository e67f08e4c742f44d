"""tools/convert_checkpoint.py as a user runs it, and what can be done with what it writes."""

import importlib.util
from pathlib import Path

import pytest
import torch
from detectron2.engine import default_argument_parser

import train_net
from mmdet_states import random_state, save_mmdet_file
from soft_teacher import load_config
from soft_teacher.engine.export import export_model
from soft_teacher.engine.model_classes import model_categories
from test_mask_training import add_masks
from tiny_training import unmoved, write_config

TOOL = Path(__file__).parents[1] / "tools/convert_checkpoint.py"
# Other than the config of the tiny sets, which has a ResNet-18.
SMALL = {"num_classes": 3, "fc_dims": (16, 16)}
CLASSES = ("r", "g", "b")


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("convert_checkpoint", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def official(tmp_path):
    """A file of the official Soft Teacher, with a student and a teacher that differ."""
    states = {x: random_state(**SMALL, seed=i) for i, x in enumerate(("student", "teacher"))}
    joined = {f"{name}.{k}": v for name, state in states.items() for k, v in state.items()}
    return save_mmdet_file(joined, tmp_path / "official.pth", CLASSES=CLASSES)


def train_or_evaluate(config_file: Path, *arguments: str) -> dict | None:
    options = ["--config-file", str(config_file), *arguments]
    return train_net.main(default_argument_parser().parse_args(options))


def config_on_tiny_sets(tmp_path: Path, converted: Path, **keys) -> Path:
    """A config of small sets whose model is that of a converted file."""
    folder = tmp_path / f"sets_of_{tmp_path.name}"
    folder.mkdir()
    write_config(folder, VIS_PERIOD=0, SOLVER__MAX_ITER=2, **keys)
    joined = tmp_path / "joined.yaml"
    joined.write_text(f"_BASE_: [{folder / 'config.yaml'}, {converted}]\n")
    return joined


def test_the_tool_reports_all_that_it_did(tool, official, tmp_path, capsys):
    output = tmp_path / "sub" / "ours.pth"
    tool.main([str(official), "--output", str(output)])
    printed = capsys.readouterr().out
    assert "Faster R-CNN, ResNet-50, 3 classes" in printed
    assert f"{output} (student, teacher)" in printed
    assert "106 num_batches_tracked, from backbone.bn1.num_batches_tracked on" in printed
    assert "left behind: optimizer" in printed
    assert "'caffe' is assumed" in printed
    assert "1,000 proposals a level" in printed
    cfg = load_config(str(output.with_suffix(".yaml")))
    assert str(output) == cfg.MODEL.WEIGHTS
    assert [x["name"] for x in model_categories(cfg, output)] == list(CLASSES)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_refused_file_ends_the_tool_with_the_reason(tool, official, tmp_path):
    content = torch.load(official, weights_only=True)
    content["state_dict"]["student.neck.extra"] = torch.zeros(1)
    torch.save(content, official)
    with pytest.raises(SystemExit, match=r"error: 1 weights .* neck\.extra"):
        tool.main([str(official)])
    assert not (tmp_path / "official_converted.pth").exists()
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path / "absent.pth")])


def test_both_models_are_evaluated_and_exported(tool, official, tmp_path):
    tool.main([str(official), "--output", str(tmp_path / "ours.pth"), "--score-threshold", "0.001"])
    config = config_on_tiny_sets(tmp_path, tmp_path / "ours.yaml")
    results = train_or_evaluate(
        config, "--eval-only", "INPUT.MIN_SIZE_TEST", "64", "OUTPUT_DIR", str(tmp_path / "out")
    )
    assert list(results) == ["student", "teacher"]
    found = list((tmp_path / "out/inference").rglob("coco_instances_results.json"))
    assert len(found) == 2
    assert found[0].read_text() != found[1].read_text()
    cfg = load_config(str(tmp_path / "ours.yaml"))
    export_model(tmp_path / "ours.pth", "teacher", cfg, tmp_path / "plain.pth")
    plain = torch.load(tmp_path / "plain.pth", weights_only=True)["model"]
    teacher = torch.load(tmp_path / "ours.pth", weights_only=True)["teacher"]
    assert plain.keys() == teacher.keys()
    assert all(torch.equal(plain[k], teacher[k]) for k in plain)


def test_training_starts_from_the_student(tool, official, tmp_path, monkeypatch):
    tool.main([str(official), "--output", str(tmp_path / "ours.pth")])
    config = config_on_tiny_sets(tmp_path, tmp_path / "ours.yaml", SOLVER__BASE_LR=0.0)
    output = tmp_path / "out"
    train_or_evaluate(
        config, "TEST.EVAL_PERIOD", "0", "DATASETS.TEST", "()", "OUTPUT_DIR", str(output)
    )
    trained = torch.load(output / "model_final.pth", weights_only=True)
    student = torch.load(tmp_path / "ours.pth", weights_only=True)["model"]
    for part in ("model", "teacher"):
        assert trained[part].keys() == student.keys()
        for key, tensor in student.items():
            torch.testing.assert_close(trained[part][key], tensor, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="cannot be resumed from"):
        (tmp_path / "other").mkdir()
        (tmp_path / "other/model_0000001.pth").write_bytes((tmp_path / "ours.pth").read_bytes())
        train_or_evaluate(config, "--resume", "OUTPUT_DIR", str(tmp_path / "other"))


HTC = {
    **SMALL,
    "num_stages": 3,
    "class_agnostic": True,
    "mask_convs": 1,
    "flow": True,
}


@pytest.mark.slow
def test_a_converted_htc_goes_on_under_soft_teacher(tool, tmp_path):
    file = save_mmdet_file(random_state(**HTC), tmp_path / "htc.pth", CLASSES=CLASSES)
    tool.main([str(file), "--output", str(tmp_path / "ours.pth")])
    config = config_on_tiny_sets(tmp_path, tmp_path / "ours.yaml", SOLVER__BASE_LR=1e-4)
    for name in ("labeled", "val"):
        add_masks(config.parent / f"sets_of_{tmp_path.name}/{name}.json")
    output = tmp_path / "out"
    options = ["TEST.EVAL_PERIOD", "0", "DATASETS.TEST", "()", "INPUT.MASK_FORMAT", "bitmask"]
    train_or_evaluate(config, *options, "OUTPUT_DIR", str(output))
    logged = (output / "metrics.json").read_text()
    assert all(f'"loss_mask_stage{k}_unsup"' in logged for k in range(3))
    assert "skipped_steps" not in logged
    start = torch.load(tmp_path / "ours.pth", weights_only=True)["model"]
    trained = torch.load(output / "model_final.pth", weights_only=True)
    for part in ("model", "teacher"):
        assert trained[part].keys() == start.keys()
        assert unmoved(start, trained[part], "roi_heads.") == []
