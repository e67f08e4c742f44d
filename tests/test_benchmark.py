"""The benchmark runs every part of the step, and compares like with like."""

import importlib.util
import json
import statistics
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import GeneralizedRCNN, build_model

from soft_teacher.engine.benchmark import memory
from soft_teacher.engine.benchmark.bandwidth import CopyContender
from soft_teacher.engine.benchmark.building import build_soft_teacher, build_stock_contenders
from soft_teacher.engine.benchmark.comparison import run_rounds
from soft_teacher.engine.benchmark.contenders import (
    InferenceContender,
    SoftTeacherContender,
    SupervisedContender,
)
from soft_teacher.engine.benchmark.phase_clock import PhaseClock
from soft_teacher.engine.benchmark.synthetic import (
    BatchShape,
    SyntheticBatch,
    settle_frozen_norms,
)
from soft_teacher.modeling.folded_norms import FoldedConv2d
from tiny import NUM_CLASSES, tiny_config

NUM_BOXES = 2
SHAPE = BatchShape(labeled=1, unlabeled=2, height=64, width=96, num_boxes=NUM_BOXES)
CPU = torch.device("cpu")


def load_tool():
    path = Path(__file__).parents[1] / "tools" / "benchmark.py"
    spec = importlib.util.spec_from_file_location("benchmark_tool", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict:
    """What the command writes for a tiny model."""
    folder = tmp_path_factory.mktemp("benchmark")
    config, file = folder / "tiny.yaml", folder / "sub" / "numbers.json"
    config.write_text(tiny_config().dump())
    sizes = "--labeled 1 --unlabeled 2 --height 64 --width 96 --pseudo-boxes 2"
    files = ["--config-file", str(config), "--json", str(file)]
    load_tool().main(
        [
            *sizes.split(),
            "--steps",
            "2",
            "--warmup",
            "1",
            "--memory",
            *files,
            *["MODEL.DEVICE", "cpu"],
        ]
    )
    return json.loads(file.read_text())


def make_contenders() -> tuple[SoftTeacherContender, SupervisedContender, InferenceContender]:
    soft_teacher, batch = build_soft_teacher(tiny_config(), SHAPE)
    return soft_teacher, *build_stock_contenders(soft_teacher, batch)


def test_the_file_says_what_was_measured_and_where(written):
    assert written["arguments"]["pseudo_boxes"] == NUM_BOXES
    assert written["arguments"]["opts"] == ["MODEL.DEVICE", "cpu"]
    assert {"torch", "detectron2", "python"} <= written["versions"].keys()
    assert written["machine"].keys() == {"device", "processor", "threads", "system"}
    assert (written["machine"]["device"], written["dtype"]) == ("cpu", "float32")
    assert written["memory_format"] == "contiguous"
    assert written["peak_memory_bytes"] > 0


def test_memory_is_that_of_training_alone(written):
    peaks = written["peak_bytes"]
    assert peaks.keys() == {"soft_teacher", "supervised"}
    # Two models, the momentum of one, and not what the process had before.
    parameters = sum(p.numel() for p in make_contenders()[0].student.parameters()) * 4
    assert all(2 * parameters < x < written["peak_memory_bytes"] for x in peaks.values())


def test_the_average_and_the_optimizer_are_told_beside_copying(written):
    student = make_contenders()[0].student
    num_bytes = sum(4 * p.numel() for p in student.parameters() if p.requires_grad)
    traffic = written["traffic"]
    assert {name: x["bytes"] / num_bytes for name, x in traffic.items()} == {
        # What is read and what is written.
        **{"copy": 1 + 1, "ema": 2 + 1, "optimizer": 3 + 2}
    }
    medians = written["soft_teacher"]["median_seconds"]
    for name in ("ema", "optimizer"):
        assert traffic[name]["seconds"] == medians[name]
    for x in traffic.values():
        assert x["bytes_per_second"] == pytest.approx(x["bytes"] / x["seconds"])


def test_copying_copies_all_that_trains():
    model = make_contenders()[0].student
    contender = CopyContender(model, PhaseClock(CPU))
    contender.run()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) < len(list(model.parameters()))
    torch.testing.assert_close(contender.copies, trained, rtol=0, atol=0)


def test_memory_of_detectron2_as_it_comes_is_that_without_options(monkeypatch):
    peaks = {}
    monkeypatch.setattr(memory, "_peak", lambda name, cfg, shape: peaks.update({name: cfg}) or 1)
    pool = SimpleNamespace(apply=lambda function, arguments: function(*arguments))
    context = SimpleNamespace(Pool=lambda _: nullcontext(pool))
    monkeypatch.setattr(memory.multiprocessing, "get_context", lambda _: context)
    cfg = tiny_config(MODEL__BACKBONE__CHECKPOINT_ACTIVATIONS=True, MODEL__CHANNELS_LAST=True)
    for as_is in (False, True):
        memory.measure_peaks(cfg, SHAPE, as_is)
        options = {
            k: (x.MODEL.BACKBONE.CHECKPOINT_ACTIVATIONS, x.MODEL.CHANNELS_LAST)
            for k, x in peaks.items()
        }
        assert options == {"soft_teacher": (True, True), "supervised": (not as_is, not as_is)}


def test_stock_detectron2_can_be_measured_as_it_comes():
    keys = {"MODEL__CHANNELS_LAST": True, "MODEL__FOLD_FROZEN_NORMS": True}
    cfg = tiny_config(**keys, SOLVER__AMP__ENABLED=True, SOFT_TEACHER__AMP_TEACHER=True)
    soft_teacher, batch = build_soft_teacher(cfg, SHAPE)

    def ways(model) -> tuple[bool, bool]:
        convolution = model.backbone.fpn_output2.weight
        return (
            any(isinstance(x, FoldedConv2d) for x in model.modules()),
            convolution.is_contiguous(memory_format=torch.channels_last),
        )

    for as_is, expected in ((False, (True, True)), (True, (False, False))):
        supervised, inference = build_stock_contenders(soft_teacher, batch, as_is)
        for contender in (supervised, inference):
            assert ways(contender.model) == expected
            assert contender._precision.for_teacher is not as_is
    assert ways(soft_teacher.student) == ways(soft_teacher.step.teacher.model) == (True, True)


def test_every_loss_learned_from_all_pseudo_boxes(written):
    assert written["pseudo_boxes_per_image"] == {
        "rpn": NUM_BOXES,
        "cls": NUM_BOXES,
        "reg": NUM_BOXES,
    }


def test_the_phases_make_up_the_step(written):
    phases = {
        "soft_teacher": {
            *("teacher annotate", "student forward", "teacher judging"),
            *("backward", "optimizer", "ema", "other"),
        },
        "supervised": {"forward", "backward", "optimizer", "other"},
        "inference": {"other"},
    }
    for contender, names in phases.items():
        steps = written[contender]["steps"]
        assert len(steps) == 2
        for step in steps:
            assert step.keys() == names | {"total"}
            assert min(step.values()) >= 0
            assert sum(step[x] for x in names) == pytest.approx(step["total"])
        medians = written[contender]["median_seconds"]
        assert medians == {x: statistics.median(s[x] for s in steps) for x in names | {"total"}}


def test_the_ratio_is_that_of_steps_of_the_same_round(written):
    seconds = {
        name: [step["total"] for step in written[name]["steps"]]
        for name in ("soft_teacher", "supervised", "inference")
    }
    ratios = [t / (s + i) for t, s, i in zip(*seconds.values(), strict=True)]
    found = written["overhead_ratio"]
    assert found["all"] == pytest.approx(ratios)
    assert found["median"] == pytest.approx(sum(ratios) / 2)
    assert (found["min"], found["max"]) == pytest.approx((min(ratios), max(ratios)))
    assert found["min"] <= found["quartiles"][0] <= found["quartiles"][1] <= found["max"]


def test_stock_detectron2_works_on_the_same_images_with_the_same_weights():
    soft_teacher, supervised, inference = make_contenders()
    student = soft_teacher.step.student
    for contender in (supervised, inference):
        assert type(contender.model) is GeneralizedRCNN
        torch.testing.assert_close(
            dict(contender.model.state_dict()), dict(student.state_dict()), rtol=0, atol=0
        )
    seen = {"student": [], "supervised": [], "inference": [], "teacher": []}

    def spy(name, model):
        # The teacher's annotate does not pass through forward, but all pass through this.
        preprocess = model.preprocess_image

        def remember(views):
            seen[name].extend((id(x["image"]), len(x.get("instances", ()))) for x in views)
            return preprocess(views)

        model.preprocess_image = remember

    spy("student", student)
    spy("teacher", soft_teacher.step.teacher.model)
    spy("supervised", supervised.model)
    spy("inference", inference.model)
    for contender in (soft_teacher, supervised, inference):
        contender.run()
    assert [x for x, _ in seen["student"]] == [x for x, _ in seen["supervised"]]
    assert [n for _, n in seen["supervised"]] == [NUM_BOXES] * 3
    assert seen["teacher"] == seen["inference"]
    assert len(seen["teacher"]) == SHAPE.unlabeled


def test_the_teacher_detects_before_its_boxes_are_replaced():
    soft_teacher, _, _ = make_contenders()
    heads = soft_teacher.step.teacher.model.roi_heads
    calls = []

    def spy(method: str):
        original = getattr(heads, method)

        def remember(*args, **kwargs):
            calls.append(method)
            return original(*args, **kwargs)

        setattr(heads, method, remember)

    spy("forward")
    spy("score_and_refine")
    soft_teacher.run()
    assert calls == ["forward", "score_and_refine"]


def test_steps_leave_the_weights_alone_so_that_all_are_alike():
    soft_teacher, supervised, _ = make_contenders()
    for model, contender in (
        (soft_teacher.step.student, soft_teacher),
        (supervised.model, supervised),
    ):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        contender.run()
        torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_random_model_proposes_as_many_boxes_as_a_trained_one():
    cfg = tiny_config(MODEL__RPN__POST_NMS_TOPK_TEST=100)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    views = SyntheticBatch.draw(SHAPE, NUM_CLASSES).weak
    settle_frozen_norms(model, views)
    with torch.no_grad():
        images = model.preprocess_image(views)
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features, None)
    assert [len(x) for x in proposals] == [100] * len(views)


def test_an_inner_phase_does_not_count_for_the_one_around_it(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    clock = PhaseClock(CPU)

    def step():
        now[0] += 1
        with clock.phase("outer"):
            now[0] += 2
            with clock.phase("inner"):
                now[0] += 4
            now[0] += 8
        now[0] += 16
        with clock.phase("inner"):
            now[0] += 32

    assert clock.measure(step) == {"total": 63.0, "outer": 10.0, "inner": 36.0, "other": 17.0}


def test_each_contender_begins_as_often_as_the_others():
    order = []

    class Runner:
        def __init__(self, name: str):
            self.name = name

        def run(self) -> dict[str, float]:
            order.append(self.name)
            return {"total": float(len(order))}

    steps = run_rounds({name: Runner(name) for name in "abc"}, 3)
    assert "".join(order) == "abcbcacab"
    assert [step["total"] for step in steps["b"]] == [2, 4, 9]


@pytest.mark.parametrize("option", ["--labeled=0", "--unlabeled=0", "--steps=1", "--height=0"])
def test_numbers_that_make_no_sense_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        load_tool().parse_arguments([option])
    assert option.split("=")[0] in capsys.readouterr().err
