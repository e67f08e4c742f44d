"""The tables of AP over seeds."""

import json

import numpy as np
import pytest

from soft_teacher.analysis.results import (
    AP_NAMES,
    ap_by_model,
    ap_rows,
    format_ap,
    summarize_seeds,
    text_table,
    write_json,
)


def results(seed, supervised, student, teacher, equal_time=None):
    def ap(value):
        return dict.fromkeys(AP_NAMES, value)

    run = {
        "supervised": ap(supervised),
        "soft_teacher": {"student": ap(student), "teacher": ap(teacher)},
        "seed": seed,
    }
    return run if equal_time is None else {**run, "supervised_equal_time": ap(equal_time)}


def test_mean_and_deviation_are_those_of_numpy_and_gains_are_paired_by_seed():
    numbers = np.array([[10.0, 20.0, 25.0, 12.0], [13.0, 19.0, 24.0, 15.0], [9.0, 22.0, 27.0, 8.0]])
    summary = summarize_seeds([results(i, *row) for i, row in enumerate(numbers)])
    expected = {
        "supervised": numbers[:, 0],
        "student": numbers[:, 1],
        "teacher": numbers[:, 2],
        "supervised_equal_time": numbers[:, 3],
        "gain": numbers[:, 2] - numbers[:, 0],
        "gain_equal_time": numbers[:, 2] - numbers[:, 3],
    }
    assert summary["mean"].keys() == summary["std"].keys() == expected.keys()
    for model, values in expected.items():
        for name in AP_NAMES:
            assert summary["mean"][model][name] == pytest.approx(values.mean())
            assert summary["std"][model][name] == pytest.approx(values.std(ddof=1))
    assert summary["ddof"] == 1
    assert [run["seed"] for run in summary["runs"]] == [0, 1, 2]


def test_one_seed_has_no_deviation_and_a_missing_value_none_at_all():
    one = summarize_seeds([results(0, 10.0, 20.0, 25.0)])
    assert one["mean"]["gain"]["AP"] == 15.0
    assert one["std"]["gain"]["AP"] is None
    two = summarize_seeds([results(0, None, 20.0, 25.0), results(1, 10.0, 20.0, 25.0)])
    assert two["mean"]["supervised"]["AP"] is two["mean"]["gain"]["AP"] is None
    assert two["mean"]["teacher"]["AP"] == 25.0


def test_rows_read_as_a_person_expects():
    assert format_ap(None) == "-"
    assert format_ap(12.345) == "12.3"
    assert format_ap(12.345, 0.678) == "12.3 ± 0.7"
    assert format_ap(1.0, signed=True) == "+1.0"
    rows = ap_rows(ap_by_model(results(0, 10.0, 20.0, 8.0)))
    assert rows[0] == ["Supervised", "10.0", "10.0", "10.0"]
    assert rows[-1][1] == "-2.0"
    lines = text_table(["", "AP"], [["a", "1.0"], ["long", "10.0"]]).splitlines()
    assert lines == ["        AP", "a      1.0", "long  10.0"]


def test_written_json_is_strict(tmp_path):
    write_json(tmp_path / "new" / "file.json", {"a": None})
    assert json.loads((tmp_path / "new" / "file.json").read_text()) == {"a": None}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file.json", {"a": float("nan")})
