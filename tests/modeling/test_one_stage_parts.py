"""Weights, places and spreads of dense predictions, against brute force."""

import math

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances, pairwise_iou

from one_stage import annotated, config, excited, student_of, sure
from soft_teacher.modeling.box_jitter import box_regression_variance
from soft_teacher.modeling.dense_correspondence import Pyramid, nearest_level
from soft_teacher.modeling.dense_guidance import DenseGuidance, DensePredictions
from soft_teacher.modeling.dense_settings import DenseSettings
from soft_teacher.modeling.dense_spread import SpreadRules, prediction_spread
from soft_teacher.modeling.dense_weighting import anchor_weights
from tiny import NUM_CLASSES, detections, plain_view

# Original image -> view, and the size of the view.
VIEWS = {
    "identity": (np.eye(3), (64, 80)),
    "flip": ([[-1.0, 0, 80], [0, 1, 0], [0, 0, 1]], (64, 80)),
    "large": ([[2.0, 0, 0], [0, 2, 0], [0, 0, 1]], (128, 160)),
    "small": ([[0.6, 0, 0], [0, 0.6, 0], [0, 0, 1]], (38, 48)),
    "shifted": ([[1.0, 0, 21], [0, 1, -13], [0, 0, 1]], (64, 80)),
    "turned": ([[1.3, -0.3, 5], [0.3, 1.3, -9], [0, 0, 1]], (83, 104)),
    "sheared, flipped": ([[-1.1, 0.3, 77], [0, 1.1, 3], [0, 0, 1]], (70, 88)),
}


def features_of(student, view: dict) -> list[torch.Tensor]:
    with torch.no_grad():
        return student._predict(student.preprocess_image([view]).tensor)[0]


def numbered(student, weak: dict) -> DenseGuidance:
    """Guidance whose foreground scores are the numbers of the teacher's anchors, below 0.5."""
    features = features_of(student, weak)
    num_anchors = student.anchor_generator.num_anchors[0]
    total = sum(len(x) for x in student.anchor_generator(features))
    numbers = (torch.arange(total, dtype=torch.float64) + 1) / (2 * total)
    settings = student.soft_teacher
    predictions = DensePredictions(
        numbers.view(1, -1, num_anchors), student._pyramid(features), [detections([], [])]
    )
    labels = [detections([], [], size=tuple(weak["image"].shape[1:]))]
    return DenseGuidance(
        labels, [weak["matrix"]], predictions, settings.rules, settings.spread_rules
    )


@pytest.mark.parametrize("strong_name", list(VIEWS))
@pytest.mark.parametrize("weak_name", ["identity", "flip", "large"])
@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_each_anchor_asks_the_nearest_one_of_its_shape(name, weak_name, strong_name):
    """In level by size, then in place, by a search over all anchors of the teacher."""
    student = student_of(name)
    weak, strong = (
        plain_view(0, size=size, matrix=matrix)
        for matrix, size in (VIEWS[weak_name], VIEWS[strong_name])
    )
    guidance = numbered(student, weak)
    own, theirs = (
        Boxes.cat(student.anchor_generator(features_of(student, view))) for view in (strong, weak)
    )
    pyramid = student._pyramid(features_of(student, strong))
    found = guidance.seen_from([strong]).background_reliability(pyramid)[0]
    assert len(found) == len(own)

    matrix = weak["matrix"] @ np.linalg.inv(strong["matrix"])
    scale = math.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    centers = torch.cat([own.get_centers().double(), torch.ones(len(own), 1)], dim=1)
    mapped = (centers @ torch.from_numpy(matrix).T)[:, :2]
    height, width = VIEWS[weak_name][1]
    inside = (mapped >= 0).all(dim=1) & (mapped[:, 0] < width) & (mapped[:, 1] < height)
    # On the very border rounding decides.
    border = torch.tensor([width, height])
    near_border = ((mapped.abs() < 1e-3) | ((mapped - border).abs() < 1e-3)).any(dim=1)
    assert inside.any()

    num_anchors = student.anchor_generator.num_anchors[0]
    sizes, their_sizes = own.area().double().sqrt() * scale, theirs.area().double().sqrt()
    shape = torch.arange(len(own)) % num_anchors
    their_shape = torch.arange(len(theirs)) % num_anchors
    asked = ((1 - found) * 2 * len(theirs)).round().long() - 1
    for i in range(len(own)):
        if near_border[i]:
            continue
        if not inside[i]:
            assert found[i] == 1
            continue
        same = their_shape == shape[i]
        ratios = torch.where(same, (their_sizes / sizes[i]).log().abs(), torch.inf)
        best = ratios < ratios.min() + 1e-3
        distances = (theirs.get_centers().double() - mapped[i]).norm(dim=1)
        assert best[asked[i]], i
        assert distances[asked[i]] <= distances[best].min() + 1e-3, i


def test_the_same_view_is_asked_at_the_very_same_anchors():
    student = student_of("retinanet")
    guidance = numbered(student, plain_view(0))
    view = plain_view(0)
    pyramid = student._pyramid(features_of(student, view))
    found = guidance.seen_from([view]).background_reliability(pyramid)
    # 64 x 80 is padded to 64 x 96, which the image does not fill.
    foreground = guidance.predictions.foreground.flatten()
    centers = Boxes.cat(student.anchor_generator(features_of(student, view))).get_centers()
    shown = (centers[:, 0] < 80) & (centers[:, 1] < 64)
    assert shown.any() and not shown.all()
    torch.testing.assert_close(found[0], torch.where(shown, 1 - foreground, 1.0))


def test_reliability_is_one_minus_the_largest_class_probability():
    for name in ("retinanet", "fcos"):
        student = excited(student_of(name)).eval()
        view = plain_view(4, size=(64, 96))
        guidance = student.annotate([view])
        features, (logits, *_) = student._predict(student.preprocess_image([view]).tensor)
        found = guidance.seen_from([view]).background_reliability(student._pyramid(features))
        expected = 1 - torch.cat(logits, dim=1).sigmoid().amax(dim=2)
        shown = found < 1
        assert shown.float().mean() > 0.5
        torch.testing.assert_close(found[shown], expected[shown])


def test_levels_are_nearest_by_ratio():
    strides = [8, 16, 32, 64, 128]
    assert [nearest_level(s, strides) for s in (1, 8, 11, 12, 23, 120, 999)] == [
        0,
        0,
        0,
        1,
        2,
        4,
        4,
    ]


def test_a_pyramid_is_that_of_the_anchors():
    student = student_of("fcos")
    features = features_of(student, plain_view(0))
    pyramid = student._pyramid(features)
    assert isinstance(pyramid, Pyramid)
    anchors = student.anchor_generator(features)
    for boxes, (height, width), stride in zip(anchors, *pyramid[:2], strict=True):
        centers = boxes.get_centers().view(height, width, 2)
        assert centers[0, 0].tolist() == [pyramid.offset * stride] * 2
        assert (centers[-1, -1] - centers[0, 0]).tolist() == [
            (width - 1) * stride,
            (height - 1) * stride,
        ]


def random_labels(num_images: int = 3, num_anchors: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (num_images, num_anchors)
    labels = torch.randint(-1, NUM_CLASSES + 1, shape, generator=generator)
    # Most are background, the last image has nothing else.
    labels[:, 20:] = NUM_CLASSES
    labels[-1] = NUM_CLASSES
    return labels, torch.rand(shape, generator=generator)


@pytest.mark.parametrize("per_image", [False, True])
def test_weights_of_negatives_are_proportional_to_reliability_with_a_mean_of_one(per_image):
    labels, reliability = random_labels()
    weights = anchor_weights(labels, reliability, NUM_CLASSES, per_image)
    groups = [[i] for i in range(len(labels))] if per_image else [list(range(len(labels)))]
    for images in groups:
        places = [
            (i, j)
            for i in images
            for j in range(labels.shape[1])
            if int(labels[i, j]) == NUM_CLASSES
        ]
        total = sum(float(reliability[p]) for p in places)
        for p in places:
            expected = float(reliability[p]) * len(places) / total
            assert float(weights[p]) == pytest.approx(expected, rel=1e-5)
        mean = sum(float(weights[p]) for p in places) / len(places)
        assert mean == pytest.approx(1.0, rel=1e-5)
    for i, j in np.ndindex(labels.shape):
        if labels[i, j] != NUM_CLASSES:
            assert float(weights[i, j]) == (0.0 if labels[i, j] == -1 else 1.0)


@pytest.mark.parametrize("per_image", [False, True])
def test_equal_reliability_leaves_all_weights_at_one(per_image):
    labels, reliability = random_labels()
    weights = anchor_weights(labels, torch.full_like(reliability, 0.3), NUM_CLASSES, per_image)
    torch.testing.assert_close(weights, (labels >= 0).float())


def test_weights_are_finite_where_nothing_is_reliable_or_nothing_is_background():
    labels = torch.tensor([[0, 1, -1], [NUM_CLASSES] * 3])
    weights = anchor_weights(labels, torch.zeros(2, 3), NUM_CLASSES, per_image=True)
    assert weights.tolist() == [[1, 1, 0], [0, 0, 0]]


def clustered() -> tuple[Instances, Instances]:
    """Four pseudo boxes; the last has a neighbour of another class, and too few of its own."""
    generator = torch.Generator().manual_seed(1)
    boxes = torch.tensor([[10.0, 10, 40, 50], [12, 14, 44, 48], [50, 20, 75, 60], [0, 0, 30, 20]])
    classes = [0, 1, 0, 2]
    sizes = [6, 5, 4, 2]
    candidates, labels = [], []
    for box, label, size in zip(boxes, classes, sizes, strict=True):
        noise = torch.randn(size, 4, generator=generator) * 2
        candidates += [box, *(box + noise)][:size]
        labels += [label] * size
    candidates += [boxes[3] + 0.5, boxes[3] - 0.5, boxes[0] + 25]
    labels += [0, 1, 0]
    scores = torch.rand(len(candidates), generator=generator) * 0.8 + 0.1
    return (
        detections(boxes, [0.9] * 4, classes),
        detections(torch.stack(candidates), scores, labels),
    )


@pytest.mark.parametrize("definition", ["per_axis", "paper"])
def test_spread_is_that_of_the_predictions_of_its_class_that_overlap_by_squared_score(definition):
    labels, candidates = clustered()
    rules = SpreadRules(iou=0.6, min_boxes=3, definition=definition)
    found = prediction_spread(labels, candidates, rules)
    overlaps = pairwise_iou(labels.pred_boxes, candidates.pred_boxes).numpy()
    boxes, others = (x.pred_boxes.tensor.double().numpy() for x in (labels, candidates))
    for i in range(len(labels)):
        near = [
            j
            for j in range(len(candidates))
            if overlaps[i, j] > 0.6 and candidates.pred_classes[j] == labels.pred_classes[i]
        ]
        if len(near) < 3:
            assert i == 3 and math.isinf(float(found[i]))
            continue
        weights = candidates.scores[near].double().numpy() ** 2
        mean = sum(w * others[j] for w, j in zip(weights, near, strict=True)) / weights.sum()
        squares = sum(w * (others[j] - mean) ** 2 for w, j in zip(weights, near, strict=True))
        divisor = weights.sum() - (weights**2).sum() / weights.sum()
        deviations = np.sqrt(squares / divisor)
        box = mean if definition == "per_axis" else boxes[i]
        width, height = box[2] - box[0], box[3] - box[1]
        if definition == "paper":
            width = height = (width + height) / 2
        expected = np.mean(deviations / [width, height, width, height])
        assert float(found[i]) == pytest.approx(expected, rel=1e-4)
    assert found[:3].isfinite().all()


def test_spread_and_box_jittering_use_the_same_formula():
    labels, candidates = clustered()
    own = candidates[candidates.pred_classes == 1]
    own = own[pairwise_iou(labels.pred_boxes[1:2], own.pred_boxes)[0] > 0.6]
    own.scores = torch.full((len(own),), 0.3)
    rules = SpreadRules(iou=0.6, min_boxes=3, definition="per_axis")
    torch.testing.assert_close(
        prediction_spread(labels[1:2], own, rules),
        box_regression_variance(
            own.pred_boxes.tensor[:, None], labels.pred_boxes.tensor[1:2], "per_axis"
        ),
    )


def test_places_are_taught_by_boxes_of_small_spread_only():
    student = student_of("fcos", SOFT_TEACHER__PSEUDO_LABELS__REG_VARIANCE=0.05)
    guidance = sure(annotated(student, [plain_view(1)]))
    guidance._variance = [torch.tensor([0.04, 0.06, torch.inf])]
    in_view = guidance.seen_from([plain_view(1)])
    assert in_view.teaches_reg[0].tolist() == [True, False, False]
    in_view.note_pseudo_labels()
    assert float(guidance.statistics["pseudo_boxes_reg"]) == 1
    # Boxes without a spread are left out of its mean.
    assert float(guidance.statistics["pseudo_variance"]) == pytest.approx(0.05)


def test_without_jitter_the_score_decides_for_places_too():
    student = student_of("fcos", SOFT_TEACHER__JITTER__ENABLED=False)
    guidance = student.eval().annotate([plain_view(1)])
    assert guidance.variance is None
    in_view = guidance.seen_from([plain_view(1)])
    assert in_view.teaches_reg[0].tolist() == in_view.teaches_cls[0].tolist()


def test_settings_follow_the_config():
    cfg = config(
        "fcos",
        SOFT_TEACHER__SPREAD__IOU=0.7,
        SOFT_TEACHER__JITTER__VARIANCE="paper",
        SOFT_TEACHER__BACKGROUND__NORMALIZER="paper",
        SOFT_TEACHER__BACKGROUND__RELIABILITY="none",
    )
    settings = DenseSettings.from_config(cfg)
    assert settings.spread_rules == SpreadRules(0.7, 3, "paper")
    assert settings.per_image and settings.reliability == "none" and not settings.fixed_labels
