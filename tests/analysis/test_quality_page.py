"""The page about pseudo labels: what it claims, its files, and names that try to break it."""

import csv

import numpy as np
import pytest

from measured_boxes import boxes, correlation, summary, write_made_up_quality
from soft_teacher.analysis.localization_quality import KINDS
from soft_teacher.analysis.quality_charts import binned_means
from soft_teacher.analysis.quality_files import read_quality
from soft_teacher.analysis.quality_page import build_quality_page, claim, main_rows

EVIL = "<script>alert('&')</script>"


@pytest.fixture
def folder(tmp_path):
    write_made_up_quality(tmp_path / "deep/er", EVIL)
    return tmp_path / "deep/er"


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables_hold_a_row_for_each_box_and_for_each_threshold(folder):
    found = rows_of(folder / "boxes.csv")
    assert [x["image"] for x in found] == [f"{EVIL}.png", f"{EVIL}.png", 'a,"b".png']
    assert [x["class"] for x in found] == [EVIL, "two", EVIL]
    for column in ("score", "variance", "iou", "iou_any_class", "right"):
        assert [float(x[column]) for x in found] == getattr(boxes(), column).astype(float).tolist()
    last = rows_of(folder / "thresholds.csv")[-1]
    assert last == {
        "threshold": "0.95",
        "boxes": "0",
        "right": "0",
        "precision": "",
        "recall": "0.0",
    }


def test_figures_and_summary_are_read_as_they_were_written(folder, tmp_path):
    read, figures = read_quality(folder)
    assert read == summary(EVIL)
    assert [x.startswith(b"\x89PNG") for x in figures] == [True] * 3
    assert len(set(figures)) == 3
    assert read_quality(tmp_path) is None


def test_names_and_the_command_cannot_become_code_of_the_page(folder):
    page = build_quality_page(*read_quality(folder), f"python x {EVIL}")
    assert "<script" not in page.lower()
    assert page.count("&lt;script&gt;") == 3, "weights, sets and command"
    assert page.count('src="data:image/png;base64,') == 3
    assert "http" not in page.replace("http-equiv", "")


def test_the_page_shows_precision_recall_and_correlations(folder):
    page = build_quality_page(*read_quality(folder), "")
    # Above 0.5 one of two boxes is right, and one of three objects is found.
    assert "<td>2</td><td>50.0%</td><td>33.3%</td>" in page
    assert "<td>0</td><td>-</td><td>0.0%</td>" in page
    assert page.count("+0.400 (+0.300 to +0.500)") == 9
    assert page.count("-0.600 (-0.700 to -0.500)") == 9


@pytest.mark.parametrize(
    ("advantage", "verdict"),
    [
        ((0.2, 0.1, 0.3), "the variance says more"),
        ((-0.2, -0.3, -0.1), "the score says more"),
        ((0.2, -0.1, 0.5), "neither is shown to say more"),
    ],
)
def test_the_claim_is_no_bolder_than_the_interval(advantage, verdict):
    assert verdict in claim(correlation(advantage=advantage))


def test_without_correlations_nothing_is_claimed():
    row = correlation()
    row["advantage"] = {"value": None, "interval": None}
    assert "too little" in claim(row)


def test_claims_are_of_the_boxes_above_one_half():
    assert [(x["kind"], x["above"]) for x in main_rows(summary())] == [(k, 0.5) for k in KINDS]


def test_means_are_of_equal_shares_in_the_order_of_x():
    x = np.random.default_rng(0).permutation(100).astype(float)
    means = binned_means(x, 2 * x, 10)
    assert means == [(10 * i + 4.5, 2 * (10 * i + 4.5)) for i in range(10)]
    assert binned_means(np.array([3.0]), np.array([0.5]), 10) == [(3.0, 0.5)]
    assert binned_means(np.zeros(0), np.zeros(0), 10) == []
