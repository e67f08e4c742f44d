"""What the teacher tells the student, and how little it works for that."""

import math

import numpy as np
import pytest
import torch

from oracle import load_oracle
from soft_teacher.modeling.guidance import Guidance, PseudoLabelRules
from soft_teacher.modeling.pseudo_labels import select
from soft_teacher.modeling.view_geometry import OUTLINES, project_boxes, view_to_view
from tiny import detections, plain_view, tiny_config

BOXES = [[10.0, 10, 30, 30], [20, 5, 60, 50], [40, 30, 70, 60]]
PROJECTION_CASES = ["identity", "flip_weak", "scale_flip_both", "translate", "pushed_out"]


class Judge:
    """A teacher's head that scores by box area and refines by rounding."""

    def __init__(self):
        self.calls = []

    def __call__(self, score_boxes, refine_boxes, refine_classes):
        self.calls.append((score_boxes, refine_boxes, refine_classes))
        areas = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in score_boxes]
        probabilities = [torch.stack([1 - a / 1e4, a / 1e4], dim=1) for a in areas]
        return probabilities, [b.clone() for b in refine_boxes]


def make(scores=(0.95, 0.7, 0.4), matrix=None, **overrides):
    judge = Judge()
    rules = PseudoLabelRules.from_config(tiny_config(**overrides))
    matrix = np.eye(3) if matrix is None else np.array(matrix)
    return Guidance([detections(BOXES, scores)], [matrix], judge, rules), judge


def test_a_box_scored_0_7_does_not_become_foreground():
    guidance, _ = make()
    in_view = guidance.seen_from([plain_view(0)])
    assert len(in_view.targets[0]) == 2  # 0.4 is below MIN_SCORE
    assert in_view.teaches_rpn[0].tolist() == [True, False]
    assert in_view.teaches_cls[0].tolist() == [True, False]


def test_rpn_and_classification_have_thresholds_of_their_own():
    guidance, _ = make(
        scores=(0.95, 0.85, 0.7),
        SOFT_TEACHER__PSEUDO_LABELS__RPN_SCORE=0.8,
        SOFT_TEACHER__PSEUDO_LABELS__CLS_SCORE=0.9,
    )
    in_view = guidance.seen_from([plain_view(0)])
    assert in_view.teaches_rpn[0].tolist() == [True, True, False]
    assert in_view.teaches_cls[0].tolist() == [True, False, False]


def test_a_box_scored_0_7_may_teach_regression():
    guidance, _ = make(SOFT_TEACHER__PSEUDO_LABELS__REG_VARIANCE=10.0)
    assert guidance.seen_from([plain_view(0)]).teaches_reg[0].tolist() == [True, True]


def test_without_jitter_the_score_decides_for_regression_and_nothing_is_judged():
    guidance, judge = make(SOFT_TEACHER__JITTER__ENABLED=False)
    in_view = guidance.seen_from([plain_view(0)])
    assert in_view.teaches_reg[0].tolist() == [True, False]
    assert guidance.variance is None and not judge.calls


def test_scores_and_variance_share_one_pass():
    guidance, judge = make()
    in_view = guidance.seen_from([plain_view(0)])
    in_view.background_scores([torch.tensor([[0.0, 0, 50, 40]])])
    assert in_view.teaches_reg[0].shape == (2,)
    assert len(judge.calls) == 1
    score_boxes, refine_boxes, refine_classes = judge.calls[0]
    assert score_boxes[0].shape == (1, 4)
    assert refine_boxes[0].shape == (10 * 2, 4)
    assert refine_classes[0].tolist() == [0, 1] * 10


def test_variance_is_that_of_the_refined_boxes():
    torch.manual_seed(0)
    guidance, judge = make(SOFT_TEACHER__JITTER__VARIANCE="paper")
    variance = guidance.variance[0]
    refined = judge.calls[0][1][0].view(10, 2, 4).double()
    for i, box in enumerate(BOXES[:2]):
        sides = (box[2] - box[0] + box[3] - box[1]) / 2
        mean = refined[:, i].mean(dim=0)
        sigma = (((refined[:, i] - mean) ** 2).sum(dim=0) / 9).sqrt()
        assert float(variance[i]) == pytest.approx(float((sigma / sides).mean()), rel=1e-5)


def test_boxes_to_judge_are_carried_back_to_the_weak_view():
    flip = [[-1.0, 0, 80], [0, 1, 0], [0, 0, 1]]
    double = [[2.0, 0, 0], [0, 2, 0], [0, 0, 1]]
    guidance, judge = make(matrix=flip)
    strong = plain_view(0, size=(128, 160), matrix=double)
    in_view = guidance.seen_from([strong])
    in_view.background_scores([torch.tensor([[20.0, 40, 60, 80]])])
    assert judge.calls[0][0][0].tolist() == [[50, 20, 70, 40]]
    assert in_view.targets[0].gt_boxes.tensor[0].tolist() == [100, 20, 140, 60]
    assert in_view.targets[0].image_size == (128, 160)


@pytest.mark.parametrize("name", PROJECTION_CASES)
def test_what_teaches_classification_is_what_the_official_code_keeps(name):
    case = load_oracle(f"c_project_{name}")
    labels = detections(
        case["boxes_weak"], case["scores"], case["labels"], tuple(case["weak_shape"].tolist())
    )
    rules = PseudoLabelRules.from_config(
        tiny_config(SOFT_TEACHER__PSEUDO_LABELS__OUTLINE="corners")
    )
    guidance = Guidance([labels], [case["M_weak"].double().numpy()], Judge(), rules)
    strong = plain_view(0, tuple(case["strong_shape"].tolist()), case["M_strong"].double().numpy())
    in_view = guidance.seen_from([strong])
    (kept,) = select(in_view.targets, in_view.teaches_cls)
    torch.testing.assert_close(kept.gt_boxes.tensor, case["ms_cls_boxes"], rtol=1e-5, atol=1e-3)
    assert torch.equal(kept.gt_classes, case["ms_cls_labels"])


@pytest.mark.parametrize("outline", OUTLINES)
def test_targets_and_judged_boxes_have_the_outline_of_the_config(outline):
    guidance, judge = make(SOFT_TEACHER__PSEUDO_LABELS__OUTLINE=outline)
    angle = math.radians(20)
    turn = [[math.cos(angle), -math.sin(angle), 15], [math.sin(angle), math.cos(angle), 0]]
    view = plain_view(0)
    view["matrix"] = np.array([*turn, [0, 0, 1]])
    there = view_to_view(np.eye(3), view["matrix"], torch.device("cpu"))
    back = view_to_view(view["matrix"], np.eye(3), torch.device("cpu"))
    size = tuple(view["image"].shape[1:])
    in_view = guidance.seen_from([view])
    expected = project_boxes(torch.tensor(BOXES[:2]), there, size, outline)
    assert torch.equal(in_view.targets[0].gt_boxes.tensor, expected)
    in_view.background_scores([torch.tensor([[20.0, 20, 50, 40]])])
    expected = project_boxes(
        torch.tensor([[20.0, 20, 50, 40]]), back, guidance.labels[0].image_size, outline
    )
    assert torch.equal(judge.calls[0][0][0], expected)


def test_a_box_that_left_the_strong_view_teaches_nothing():
    push = [[1.0, 0, 70], [0, 1, 0], [0, 0, 1]]
    guidance, _ = make(scores=(0.95, 0.95, 0.95), SOFT_TEACHER__PSEUDO_LABELS__REG_VARIANCE=10.0)
    in_view = guidance.seen_from([plain_view(0, matrix=push)])
    expected = [False, False, False]
    assert (BOXES[0][0] + 70) >= 80
    assert in_view.teaches_cls[0].tolist() == expected
    assert in_view.teaches_reg[0].tolist() == expected


def test_no_detections_need_no_special_case():
    judge = Judge()
    rules = PseudoLabelRules.from_config(tiny_config())
    guidance = Guidance([detections([], [])], [np.eye(3)], judge, rules)
    in_view = guidance.seen_from([plain_view(0)])
    assert in_view.background_scores([torch.tensor([[0.0, 0, 9, 9]])])[0].shape == (1,)
    in_view.note_pseudo_labels()
    found = {k: float(v) for k, v in guidance.statistics.items()}
    for name in ("rpn", "cls", "reg"):
        assert found[f"pseudo_boxes_{name}"] == 0
    # A mean over nothing would read as perfectly reliable if it were 0.
    assert math.isnan(found["pseudo_score"]) and math.isnan(found["pseudo_variance"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOFT_TEACHER.JITTER.DISTRIBUTION", "normal"),
        ("SOFT_TEACHER.JITTER.VARIANCE", "eq9"),
        ("SOFT_TEACHER.JITTER.NUM", 1),
        ("SOFT_TEACHER.PSEUDO_LABELS.OUTLINE", "circle"),
        ("SOFT_TEACHER.PSEUDO_LABELS.CLS_SCORE", 0.4),
        ("SOFT_TEACHER.PSEUDO_LABELS.RPN_SCORE", 0.4),
    ],
)
def test_a_bad_value_is_an_error_that_names_its_key(key, value):
    with pytest.raises(ValueError, match=key):
        PseudoLabelRules.from_config(tiny_config(**{key: value}))
