"""The score threshold of evaluation does not change what the teacher teaches."""

import numpy as np
import pytest
import torch

from tiny import plain_view, tiny_model

VIEWS = [plain_view(seed, size=(96, 128)) for seed in range(3)]
MIN_SCORE = 0.5


def sure_teacher(threshold: float):
    """A teacher whose scores reach from nothing to almost 1; the same for every threshold."""
    model = tiny_model(
        MODEL__ROI_HEADS__SCORE_THRESH_TEST=threshold,
        SOFT_TEACHER__PSEUDO_LABELS__MIN_SCORE=MIN_SCORE,
        TEST__DETECTIONS_PER_IMAGE=100,
    ).eval()
    with torch.no_grad():
        weight = model.roi_heads.box_predictor.cls_score.weight
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)))
    return model


@pytest.fixture(scope="module")
def detections():
    """What the model detects in evaluation, by threshold."""
    found = {}
    for threshold in (0.05, 0.001):
        with torch.no_grad():
            outputs = sure_teacher(threshold)(VIEWS)
        found[threshold] = [x["instances"] for x in outputs]
    return found


def test_a_lower_threshold_only_adds_detections_of_low_scores(detections):
    for usual, low in zip(detections[0.05], detections[0.001], strict=True):
        assert len(low) > len(usual)
        assert (low.scores[len(usual) :] <= 0.05).all()
        assert torch.equal(low.scores[: len(usual)], usual.scores)
        assert torch.equal(low.pred_boxes.tensor[: len(usual)], usual.pred_boxes.tensor)


def test_pseudo_labels_are_the_same_at_the_usual_and_at_a_low_threshold():
    usual, low = (sure_teacher(x).annotate(VIEWS).labels for x in (0.05, 0.001))
    assert sum(len(x) for x in usual) > 0
    for a, b in zip(usual, low, strict=True):
        assert (a.scores > MIN_SCORE).all()
        assert np.array_equal(a.scores.numpy(), b.scores.numpy())
        assert np.array_equal(a.pred_boxes.tensor.numpy(), b.pred_boxes.tensor.numpy())
        assert np.array_equal(a.pred_classes.numpy(), b.pred_classes.numpy())
