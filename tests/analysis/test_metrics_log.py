"""Reading metrics.json, also of resumed and of running trainings."""

import json
import math

import pytest

from soft_teacher.analysis.metrics_log import (
    final_ap,
    read_entries,
    read_metrics,
    sum_of_losses,
)


def write(path, *entries, rest=""):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + rest)
    return path


def test_iterations_that_a_resumed_training_repeats_have_its_later_values(tmp_path):
    path = write(
        tmp_path / "metrics.json",
        {"iteration": 19, "loss": 3.0},
        {"iteration": 39, "loss": 2.0},
        {"iteration": 59, "loss": 9.0},
        {"iteration": 39, "loss": 1.5},
        {"iteration": 59, "loss": 1.0},
    )
    assert read_metrics(path) == {"loss": {19: 3.0, 39: 1.5, 59: 1.0}}


def test_a_line_that_is_still_being_written_is_left_out(tmp_path):
    path = write(tmp_path / "metrics.json", {"iteration": 1, "a": 2.0}, rest='{"iteration": 2, "a"')
    assert read_metrics(path) == {"a": {1: 2.0}}
    assert read_entries(tmp_path / "not_there_yet.json") == []


def test_a_broken_line_is_named(tmp_path):
    path = write(tmp_path / "metrics.json", {"iteration": 1}, rest="oops\n")
    with pytest.raises(ValueError, match=r"metrics\.json, line 2"):
        read_metrics(path)


def test_the_final_ap_is_the_last_evaluation_and_none_where_nothing_was_detected(tmp_path):
    path = write(
        tmp_path / "metrics.json",
        {"iteration": 9, "student/bbox/AP": 1.0, "student/bbox/AP50": 2.0, "student/bbox/AP75": 3},
        {
            "iteration": 20,
            "student/bbox/AP": 4.0,
            "student/bbox/AP50": 5.0,
            "student/bbox/AP75": math.nan,
        },
    )
    metrics = read_metrics(path)
    assert final_ap(metrics, "student") == {"AP": 4.0, "AP50": 5.0, "AP75": None}
    with pytest.raises(ValueError, match="no evaluation of the teacher"):
        final_ap(metrics, "teacher")


def test_losses_of_labeled_and_unlabeled_images_are_added_up_apart(tmp_path):
    path = write(
        tmp_path / "metrics.json",
        {"iteration": 0, "loss_cls": 1.0, "loss_rpn_cls": 0.5, "total_loss": 1.5},
        {"iteration": 1, "loss_cls": 0.75, "loss_cls_unsup": 2.0, "loss_box_reg_unsup": 0.25},
    )
    metrics = read_metrics(path)
    assert sum_of_losses(metrics, unlabeled=False) == {0: 1.5, 1: 0.75}
    assert sum_of_losses(metrics, unlabeled=True) == {1: 2.25}
