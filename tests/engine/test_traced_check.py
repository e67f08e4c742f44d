"""Detections of two programs are compared up to rounding."""

import pytest
import torch

from soft_teacher.engine.traced_check import Agreement, compare_detections

THRESHOLD, MOST = 0.05, 4


def detections(boxes, classes, scores):
    return {
        "pred_boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "pred_classes": torch.tensor(classes, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }


BOXES = [[0, 0, 10, 10], [5, 5, 30, 40], [50, 50, 60, 70]]
BASE = detections(BOXES, [0, 1, 1], [0.9, 0.5, 0.3])


def compare(found, expected=BASE):
    return compare_detections(found, expected, THRESHOLD, MOST)


def test_the_largest_differences_are_found_whatever_the_order():
    moved = [[50, 50, 60.03, 70], [0, 0, 10, 10], [5, 5.02, 30, 40]]
    agreement = compare(detections(moved, [1, 0, 1], [0.3, 0.9, 0.5004]))
    assert agreement.num_detections == 3 and agreement.is_close
    assert agreement.box == pytest.approx(0.03, abs=1e-5)
    assert agreement.score == pytest.approx(4e-4, abs=1e-6)


@pytest.mark.parametrize(
    "found",
    [
        detections(BOXES, [0, 0, 1], [0.9, 0.5, 0.3]),
        detections(BOXES, [0, 1, 1], [0.9, 0.5, 0.302]),
        detections([*BOXES[:2], [50, 50, 60, 70.2]], [0, 1, 1], [0.9, 0.5, 0.3]),
        detections(BOXES[:2], [0, 1], [0.9, 0.5]),
        detections([*BOXES, [80, 80, 90, 90]], [0, 1, 1, 1], [0.9, 0.5, 0.3, 0.2]),
        detections([], [], []),
    ],
    ids=["class", "score", "box", "missing", "more", "none"],
)
def test_what_rounding_does_not_explain_is_noticed(found):
    # Five may be found, so that none is there for want of a better one.
    assert not compare_detections(found, BASE, THRESHOLD, 5).is_close
    assert not compare_detections(BASE, found, THRESHOLD, 5).is_close


def test_detections_that_rounding_brings_in_or_out_are_not_asked_for():
    just_above = detections([*BOXES, [80, 80, 90, 90]], [0, 1, 1, 1], [0.9, 0.5, 0.3, 0.0505])
    assert compare_detections(just_above, BASE, THRESHOLD, 5).is_close
    # The last of as many as there may be.
    full, other = (
        detections([*BOXES, last], [0, 1, 1, 1], [0.9, 0.5, 0.3, 0.2])
        for last in ([80, 80, 90, 90], [1, 80, 9, 90])
    )
    assert compare(full, other).is_close
    assert not compare_detections(full, other, THRESHOLD, 5).is_close


def test_boxes_that_are_the_same_are_told_apart_by_their_scores():
    twins = detections([[0, 0, 9, 9]] * 2, [1, 1], [0.9, 0.5])
    other_order = detections([[0, 0, 9, 9]] * 2, [1, 1], [0.5, 0.9])
    assert compare(other_order, twins).is_close
    assert not compare(detections([[0, 0, 9, 9]], [1], [0.9]), twins).is_close


def test_masks_count_as_scores_do():
    masks = torch.zeros(3, 1, 2, 2)
    other = masks.clone()
    other[1, 0, 0, 1] = 0.01
    agreement = compare({**BASE, "pred_masks": other}, {**BASE, "pred_masks": masks})
    assert agreement.score == pytest.approx(0.01) and not agreement.is_close


def test_images_without_detections_agree_and_count():
    nothing = detections([], [], [])
    assert compare(nothing, nothing) == Agreement(1, 0, 0.0, 0.0)
    total = compare(BASE) + compare(nothing, nothing)
    assert (total.num_images, total.num_detections) == (2, 3)
