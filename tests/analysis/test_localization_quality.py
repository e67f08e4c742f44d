"""Figure 3's numbers, against brute force and on boxes whose outcome is known."""

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from soft_teacher.analysis.localization_quality import (
    ANY_CLASS,
    KINDS,
    ON_OBJECT,
    OWN_CLASS,
    MeasuredBoxes,
    correlations,
    join_images,
    measure_boxes,
    quality_at,
)

SIZE = (60, 60)


def iou(a, b):
    """Overlap of two xyxy boxes in Python's floats."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    areas = sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    return width * height / (areas - width * height)


def scene(seed, num_objects=4, copies=3):
    """Crowded objects and noisy pseudo boxes of them, some of another class."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(num_objects, 2, generator=generator) * 20
    sides = 20 + torch.rand(num_objects, 2, generator=generator) * 10
    true_boxes = torch.cat([corners, corners + sides], dim=1)
    noise = torch.randn(copies, num_objects, 4, generator=generator) * 3
    boxes = (true_boxes + noise).flatten(0, 1)
    labels = Instances(
        SIZE,
        pred_boxes=Boxes(boxes),
        pred_classes=torch.randint(0, 2, (len(boxes),), generator=generator),
        scores=torch.rand(len(boxes), generator=generator),
    )
    truth = Instances(
        SIZE,
        gt_boxes=Boxes(true_boxes),
        gt_classes=torch.randint(0, 2, (num_objects,), generator=generator),
    )
    return labels, torch.rand(len(boxes), generator=generator), truth


def count_right(labels, truth, threshold):
    """(right, boxes) of the boxes above a score alone: the best choose first, each once."""
    boxes = sorted(
        zip(
            labels.scores.tolist(),
            labels.pred_boxes.tensor.tolist(),
            labels.pred_classes.tolist(),
            strict=True,
        ),
        reverse=True,
    )
    boxes = [x for x in boxes if x[0] > threshold]
    free = list(zip(truth.gt_boxes.tensor.tolist(), truth.gt_classes.tolist(), strict=True))
    right = 0
    for _, box, category in boxes:
        pairs = [(iou(box, x[0]), x) for x in free if x[1] == category]
        overlap, chosen = max(pairs, key=lambda pair: pair[0], default=(0, None))
        if overlap >= 0.5:
            right += 1
            free.remove(chosen)
    return right, len(boxes)


@pytest.mark.parametrize("seed", range(10))
def test_the_iou_of_a_box_is_its_largest_with_its_class_or_with_any(seed):
    labels, variance, truth = scene(seed)
    measured = measure_boxes(labels, variance, truth)
    objects = list(zip(truth.gt_boxes.tensor.tolist(), truth.gt_classes.tolist(), strict=True))
    for i, box in enumerate(labels.pred_boxes.tensor.tolist()):
        same = [iou(box, x) for x, category in objects if category == labels.pred_classes[i]]
        assert measured.iou[i] == pytest.approx(max(same, default=0), abs=1e-5)
        assert measured.iou_any_class[i] == pytest.approx(max(iou(box, x) for x, _ in objects))
    assert measured.score.tolist() == labels.scores.tolist()
    assert measured.variance.tolist() == variance.tolist()


def test_precision_and_recall_equal_a_count_at_each_threshold():
    scenes = [scene(seed) for seed in range(8)]
    measured = join_images(measure_boxes(*x) for x in scenes)
    for row in quality_at(measured, [0.0, 0.2, 0.5, 0.8, 0.95]):
        counts = [count_right(labels, truth, row["threshold"]) for labels, _, truth in scenes]
        right, boxes = map(sum, zip(*counts, strict=True))
        assert (row["right"], row["boxes"]) == (right, boxes)
        assert row["precision"] == pytest.approx(right / boxes)
        assert row["recall"] == pytest.approx(right / (8 * 4))
    assert measured.image.tolist() == [i for i in range(8) for _ in range(12)]


def test_a_score_at_the_threshold_is_not_above_it():
    labels, variance, truth = scene(0)
    labels.scores[:] = 0.5
    measured = measure_boxes(labels, variance, truth)
    assert [x["boxes"] for x in quality_at(measured, [0.49, 0.5])] == [12, 0]


def test_images_without_boxes_or_objects_count_too():
    labels, variance, truth = scene(0)
    measured = join_images(
        [
            measure_boxes(labels, variance, truth[:0]),
            measure_boxes(labels[:0], variance[:0], truth),
        ]
    )
    (row,) = quality_at(measured, [0.0])
    assert (row["boxes"], row["right"], row["precision"], row["recall"]) == (12, 0, 0, 0)
    assert measured.iou.max() == measured.iou_any_class.max() == 0
    nothing = join_images([measure_boxes(labels[:0], variance[:0], truth[:0])])
    (row,) = quality_at(nothing, [0.0])
    assert row["precision"] is row["recall"] is None


def table(score, variance, iou_values, iou_any_class=None, num_images=10):
    score, variance, own = (np.array(x, float) for x in (score, variance, iou_values))
    return MeasuredBoxes(
        image=np.arange(len(score)) % num_images,
        category=np.zeros(len(score), np.int64),
        score=score,
        variance=variance,
        iou=own,
        iou_any_class=own if iou_any_class is None else np.array(iou_any_class, float),
        right=own >= 0.5,
        num_objects=np.ones(num_images, np.int64),
    )


def row_of(rows, kind, above):
    (row,) = (x for x in rows if (x["kind"], x["above"]) == (kind, above))
    return row


def test_a_variance_that_orders_the_boxes_has_the_advantage_over_a_score_that_does_not():
    random = np.random.default_rng(0)
    place = random.uniform(0.5, 1, 200)
    boxes = table(random.uniform(0.05, 1, 200), 1 / place, place)
    rows = correlations(boxes, 0.05, resamples=50, seed=0)
    assert [(x["kind"], x["above"]) for x in rows] == [
        (k, a) for k in KINDS for a in (0.05, 0.5, 0.9)
    ]
    for row in rows:
        assert row["boxes"] == (boxes.score > row["above"]).sum()
        assert row["variance"]["value"] == pytest.approx(-1)
        assert row["variance"]["interval"] == pytest.approx((-1, -1))
        assert row["advantage"]["value"] == pytest.approx(1 - row["score"]["value"])
    advantage = row_of(rows, OWN_CLASS, 0.05)["advantage"]
    assert 0.7 < advantage["interval"][0] < advantage["value"] < advantage["interval"][1] < 1.3


def test_a_variance_that_points_the_wrong_way_has_no_advantage():
    place = np.linspace(0.5, 1, 30)
    rows = correlations(table(place, place, place), 0.05, resamples=5, seed=0)
    assert rows[0]["advantage"]["value"] == pytest.approx(-2)


def test_each_kind_is_of_its_own_iou_and_boxes():
    # In pairs: a box of its class that lies better the higher its score; one of another class.
    score = np.linspace(0.1, 0.4, 20)
    place = np.linspace(0.1, 0.9, 20)
    own, other = place, place[::-1]
    rows = correlations(
        table([*score, *score], np.ones(40), [*own, *np.zeros(20)], [*own, *other]),
        0.05,
        resamples=5,
        seed=0,
    )
    assert row_of(rows, ANY_CLASS, 0.05)["score"]["value"] == pytest.approx(0, abs=1e-9)
    assert 0 < row_of(rows, OWN_CLASS, 0.05)["score"]["value"] < 1
    on_object = row_of(rows, ON_OBJECT, 0.05)
    assert on_object["boxes"] == (place >= 0.5).sum()
    assert on_object["score"]["value"] == pytest.approx(1)


def test_what_is_not_defined_is_none():
    rows = correlations(table([0.6, 0.7], [1, 1], [0.6, 0.7], num_images=2), 0.05, 5, 0)
    row = row_of(rows, OWN_CLASS, 0.05)
    assert row["score"]["value"] == pytest.approx(1)
    assert row["variance"] == row["advantage"] == {"value": None, "interval": None}
    empty = row_of(rows, OWN_CLASS, 0.9)
    assert (empty["boxes"], empty["score"]["value"]) == (0, None)
