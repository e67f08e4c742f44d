"""What a step computes stays within budgets that do not depend on the machine.

The budgets in tests/data/step_budget.json are what was counted when they were set. A change that
lowers a count lowers its budget too; one that raises a count needs a reason.
"""

import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes
from fvcore.nn import FlopCountAnalysis

from soft_teacher import load_config
from soft_teacher.engine.benchmark import BatchShape
from soft_teacher.engine.benchmark.arithmetic import count_step, count_work
from soft_teacher.engine.benchmark.building import build_soft_teacher, build_stock_contenders
from soft_teacher.engine.benchmark.host_reads import count_host_reads
from tiny import NUM_CLASSES, tiny_config

ROOT = Path(__file__).resolve().parents[1]
BUDGET = Path(__file__).parent / "data" / "step_budget.json"
SHAPE = BatchShape(labeled=1, unlabeled=2, height=128, width=192, num_boxes=8)
FLOOR_MARGIN = 1.01


def load_tool():
    spec = importlib.util.spec_from_file_location("count_step", ROOT / "tools" / "count_step.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def counts() -> dict:
    """A step of the main recipe on small images."""
    cfg = load_config(str(ROOT / "configs/coco/soft_teacher_R_50_FPN_10pct.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    return load_tool().count(cfg, SHAPE)


def test_flops_are_those_that_no_step_can_do_without(counts):
    assert counts["flops_over_floor"] <= FLOOR_MARGIN
    parts = ("supervised", "inference")
    floor = sum(counts[x]["flops"] for x in parts) + counts["judging_flops"]
    assert counts["floor_flops"] == floor
    traffic = [*(counts[x]["traffic_bytes"] for x in parts), counts["judging_traffic_bytes"]]
    assert counts["floor_traffic_bytes"] == sum(traffic) < counts["soft_teacher"]["traffic_bytes"]
    # Its input alone: every judged RoI has 256 channels of 7 x 7.
    assert traffic[2] > counts["roi_rows"]["judged"] * 256 * 7 * 7 * 4
    # The margin would not hide a second pass over the RoIs.
    assert counts["judging_flops"] > (FLOOR_MARGIN - 1) * floor


def test_the_budgets_are_kept(counts):
    budget = json.loads(BUDGET.read_text())
    # How many RoIs are foreground, and need no judging, may differ by a few with the rounding.
    assert counts["soft_teacher"]["flops"] <= budget["flops"] * 1.002
    assert counts["roi_rows"].keys() == budget["roi_rows"].keys()
    for name, rows in counts["roi_rows"].items():
        assert rows <= budget["roi_rows"][name], name
    for package, most in budget["host_reads"].items():
        assert sum(counts["host_reads"]["soft_teacher"][package].values()) <= most, package


def test_each_row_of_the_box_heads_is_needed(counts):
    rows = counts["roi_rows"]
    assert rows["judged"] == counts["background_to_judge"] + counts["jittered_to_refine"]
    assert counts["jittered_to_refine"] == 10 * SHAPE.unlabeled * SHAPE.num_boxes
    assert rows["labeled"] == 512 * SHAPE.labeled
    assert 512 * SHAPE.unlabeled <= rows["unlabeled"] <= 520 * SHAPE.unlabeled


def test_a_second_pass_over_the_rois_would_break_the_budget():
    soft_teacher, batch = build_soft_teacher(tiny_config(), BatchShape(1, 1, 64, 96, 2))
    stock = build_stock_contenders(soft_teacher, batch)
    lean = count_step(soft_teacher, *stock, num_jittered=20)
    assert lean.ratio <= FLOOR_MARGIN
    heads = soft_teacher.step.student.roi_heads
    predict = heads._predict_given_boxes

    def predict_twice(*args):
        predict(*args)
        return predict(*args)

    heads._predict_given_boxes = predict_twice
    wasteful = count_step(soft_teacher, *stock, num_jittered=20)
    assert wasteful.rows["unlabeled"] == 2 * lean.rows["unlabeled"]
    assert wasteful.soft_teacher.flops > lean.soft_teacher.flops
    assert wasteful.rows["judged"] == lean.rows["judged"]


def test_flops_agree_with_fvcores():
    soft_teacher, _ = build_soft_teacher(tiny_config(), BatchShape(1, 1, 64, 96, 2))
    backbone = soft_teacher.student.backbone.bottom_up.eval()
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        counted = count_work(lambda: backbone(images)).flops
    analysis = FlopCountAnalysis(backbone, images).unsupported_ops_warnings(False)
    products = sum(analysis.by_operator()[x] for x in ("conv", "addmm", "linear", "matmul"))
    # fvcore counts a multiplication and an addition as one.
    assert counted == 2 * products


def test_traffic_is_what_operations_read_and_write():
    x = torch.rand(10, 20)
    # Reads 200 and 200 numbers, writes 200; views move nothing.
    assert count_work(lambda: (x + x).view(20, 10).t()).traffic == 3 * 200 * 4


def reads(run) -> Counter:
    return sum(count_host_reads(run).values(), Counter())


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda x, mask: x[mask], 1),
        (lambda x, mask: mask.nonzero(), 1),
        (lambda x, mask: bool(mask.any()), 1),
        (lambda x, mask: float(x.sum()), 1),
        (lambda x, mask: x.tolist(), 1),
        (lambda x, mask: x.masked_select(mask), 1),
        (lambda x, mask: x.repeat_interleave(mask.long()), 1),
        (lambda x, mask: x.repeat_interleave(mask.long(), output_size=2), 0),
        (lambda x, mask: x.clone().__setitem__(mask, 0.0), 0),
        (lambda x, mask: x.clone().__setitem__(mask, x[:2]), 1),
        (lambda x, mask: torch.where(mask, x, -x), 0),
        (lambda x, mask: x[torch.tensor([1, 2])], 0),
    ],
)
def test_what_makes_the_host_wait_is_counted(run, expected):
    x, mask = torch.arange(4.0), torch.tensor([True, False, True, False])
    assert sum(reads(lambda: run(x, mask)).values()) == expected


def test_reads_are_told_apart_by_who_asks():
    soft_teacher, batch = build_soft_teacher(tiny_config(), BatchShape(1, 1, 64, 96, 2))
    supervised, _ = build_stock_contenders(soft_teacher, batch)
    assert NUM_CLASSES == soft_teacher.student.roi_heads.num_classes
    assert "soft_teacher" not in count_host_reads(supervised.run)
    ours = count_host_reads(soft_teacher.run)["soft_teacher"]
    assert ours["engine/train_step.py:_agree copy"] == 1
    clip = count_host_reads(lambda: Boxes(torch.rand(2, 4)).clip((1, 1)))
    assert clip == {"detectron2": Counter({"structures/boxes.py:clip read of a number": 1})}


def test_the_command_writes_what_it_counts(tmp_path, capsys):
    config, file = tmp_path / "tiny.yaml", tmp_path / "counts.json"
    config.write_text(tiny_config().dump())
    sizes = "--labeled 1 --unlabeled 1 --height 64 --width 96 --pseudo-boxes 2"
    load_tool().main([*sizes.split(), "--config-file", str(config), "--json", str(file)])
    written = json.loads(file.read_text())
    assert written["roi_rows"]["labeled"] == 32
    printed = capsys.readouterr().out
    assert "Over the floor" in printed
    assert "engine/train_step.py:_agree copy" in printed
