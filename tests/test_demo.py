"""The demo from data to report, on a few scenes and for a few iterations."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import yaml

from soft_teacher import load_config
from soft_teacher.analysis.results import AP_NAMES
from soft_teacher.engine.training_run import TrainingRun

for package in ("mlxtend", "skimage", "sklearn", "timm"):
    pytest.importorskip(package)

CONFIGS = Path(__file__).parents[1] / "configs/demo"
OVERRIDES = {
    "MODEL.TIMM.WEIGHTS": "",
    "SOLVER.MAX_ITER": "4",
    "SOLVER.STEPS": "(3,)",
    "SOLVER.BASE_LR": "0.0001",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.IMS_PER_BATCH_UNLABELED": "2",
    "SOLVER.CHECKPOINT_PERIOD": "2",
    "TEST.EVAL_PERIOD": "2",
    "VIS_PERIOD": "2",
}


@pytest.fixture
def demo():
    path = Path(__file__).parents[1] / "tools/demo.py"
    spec = importlib.util.spec_from_file_location("demo", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(*options):
    return [*options, "--scenes", "4", "6", "4", "--", *(x for kv in OVERRIDES.items() for x in kv)]


def short_configs(folder):
    """The demo's configs, with a start that four iterations have."""
    folder.mkdir()
    for name in ("supervised", "soft_teacher"):
        start = "model_0000001.pth" if name == "soft_teacher" else ""
        content = {
            "_BASE_": str(CONFIGS / f"{name}_lite0_FPN.yaml"),
            "MODEL": {"WEIGHTS": start},
        }
        (folder / f"{name}_lite0_FPN.yaml").write_text(yaml.safe_dump(content))
    return str(folder)


def is_ap(entry):
    return set(entry) == set(AP_NAMES) and all(
        x is None or (math.isfinite(x) and 0 <= x <= 100) for x in entry.values()
    )


@pytest.mark.slow
def test_the_demo_writes_its_results_and_does_nothing_twice(demo, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOFT_TEACHER_INSTALL_SECONDS", "12.5")
    options = arguments("--config-dir", short_configs(tmp_path / "configs"))
    demo.run_demo(demo.parse_args(options))
    first = (tmp_path / "output/demo/results.json").read_text()
    results = json.loads(first)
    assert set(results) == {"supervised", "soft_teacher", "seconds", "seed", "versions"}
    assert is_ap(results["supervised"])
    assert set(results["soft_teacher"]) == {"student", "teacher"}
    assert all(is_ap(x) for x in results["soft_teacher"].values())
    seconds = results["seconds"]
    assert set(seconds) == {"install", "data", "supervised", "soft_teacher", "evaluation"}
    assert seconds["install"] == 12.5
    assert all(seconds[x] > 0 for x in ("data", "supervised", "soft_teacher"))
    assert results["seed"] == 0
    trained = load_config(str(tmp_path / "output/demo/seed_0/soft_teacher/config.yaml"))
    assert trained.MODEL.WEIGHTS == "output/demo/seed_0/supervised/model_0000001.pth"
    assert "<h1>" in (tmp_path / "output/demo/report.html").read_text()
    printed = capsys.readouterr().out
    assert "Soft Teacher, teacher" in printed
    assert str(Path("output/demo/report.html")) in printed

    def refuse(self, command, on_progress):
        raise AssertionError(f"trained again: {command}")

    monkeypatch.setattr(TrainingRun, "_execute", refuse)
    demo.run_demo(demo.parse_args(options))
    assert (tmp_path / "output/demo/results.json").read_text() == first
    assert "Making the data" not in capsys.readouterr().out


def test_an_option_without_its_value_is_a_clear_error(demo, capsys):
    with pytest.raises(SystemExit):
        demo.parse_args(["--", "SOLVER.MAX_ITER"])
    assert "KEY VALUE pairs expected, not SOLVER.MAX_ITER" in capsys.readouterr().err


def test_several_seeds_may_be_named_before_the_overrides(demo):
    args = demo.parse_args(arguments("--seeds", "0", "1", "--equal-time"))
    assert args.seeds == [0, 1]
    assert args.equal_time
    assert args.overrides[:2] == ["MODEL.TIMM.WEIGHTS", ""]


def test_the_baseline_sees_at_least_as_many_labeled_images_as_soft_teacher_with_its_start(demo):
    args = demo.parse_args(["--config-dir", str(CONFIGS)])
    supervised, soft_teacher = (
        load_config(str(CONFIGS / demo.CONFIGS[name])) for name in ("supervised", "soft_teacher")
    )
    seen = supervised.SOLVER.MAX_ITER * supervised.SOLVER.IMS_PER_BATCH
    start = int(demo.start_checkpoint(args).stem.removeprefix("model_")) + 1
    assert start % supervised.SOLVER.CHECKPOINT_PERIOD == 0 and start < supervised.SOLVER.MAX_ITER
    with_start = start * supervised.SOLVER.IMS_PER_BATCH
    with_start += soft_teacher.SOLVER.MAX_ITER * soft_teacher.SOLVER.IMS_PER_BATCH
    assert seen >= max(with_start, 4000)
