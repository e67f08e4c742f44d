"""Eq. 4, 5 and 10: the losses on unlabeled images."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from oracle import load_oracle
from soft_teacher.modeling.background_weighting import (
    box_regression_loss,
    soft_classification_loss,
)

CLS_CASES = ["basic", "nopos", "oneempty", "zero_bg"]


def cls_loss(case: dict, logits: torch.Tensor, normalizer: str) -> torch.Tensor:
    return soft_classification_loss(
        F.cross_entropy(logits, case["labels"], reduction="none"),
        case["labels"] == int(case["num_classes"]),
        case["teacher_bg"],
        case["image_index"],
        2,
        normalizer,
    )


@pytest.mark.parametrize("name", CLS_CASES)
def test_classification_loss_is_that_of_the_official_code_or_of_the_paper(name):
    case = load_oracle(f"d_cls_{name}")
    joint = cls_loss(case, case["logits"], "joint")
    assert float(joint) == pytest.approx(float(case["ms_loss_cls"]), rel=1e-5)
    paper = cls_loss(case, case["logits"], "paper")
    assert float(paper) == pytest.approx(float(case["paper_loss_cls"]), rel=1e-5)


@pytest.mark.parametrize("name", ["basic", "nopos", "oneempty"])
def test_classification_gradient_is_that_of_the_reference(name):
    case = load_oracle(f"d_cls_{name}")
    logits = case["logits"].requires_grad_()
    cls_loss(case, logits, "joint").backward()
    torch.testing.assert_close(logits.grad, case["mmdet_grad_logits"], rtol=1e-4, atol=1e-7)


def random_rois(seed: int, num_rois: int = 90, num_images: int = 3):
    rng = np.random.default_rng(seed)
    losses = rng.exponential(1.0, num_rois)
    is_background = rng.random(num_rois) < 0.7
    reliability = rng.random(num_rois)
    image_index = rng.integers(0, num_images, num_rois)
    is_background[image_index == 2] = True
    return losses, is_background, reliability, image_index


@pytest.mark.parametrize("seed", range(3))
def test_paper_loss_equals_a_loop_over_equations_4_and_5(seed):
    losses, is_background, reliability, image_index = random_rois(seed)
    per_image = []
    for i in range(3):
        rows = [j for j in range(len(losses)) if image_index[j] == i]
        fg = [losses[j] for j in rows if not is_background[j]]
        total = sum(reliability[j] for j in rows if is_background[j])
        bg = sum(reliability[j] / total * losses[j] for j in rows if is_background[j])
        per_image.append((sum(fg) / len(fg) if fg else 0.0) + bg)
    found = soft_classification_loss(
        torch.tensor(losses),
        torch.tensor(is_background),
        torch.tensor(reliability),
        torch.tensor(image_index),
        3,
        "paper",
    )
    assert float(found) == pytest.approx(sum(per_image) / 3, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_joint_loss_equals_one_weighted_mean(seed):
    losses, is_background, reliability, image_index = random_rois(seed)
    weights = [r if b else 1.0 for r, b in zip(reliability, is_background, strict=True)]
    expected = sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)
    found = soft_classification_loss(
        torch.tensor(losses),
        torch.tensor(is_background),
        torch.tensor(reliability),
        torch.tensor(image_index),
        3,
        "joint",
    )
    assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("normalizer", ["joint", "paper"])
def test_reliability_of_foreground_is_ignored(normalizer):
    losses, is_background, reliability, image_index = map(torch.tensor, random_rois(7))
    other = torch.where(is_background, reliability, torch.rand_like(reliability))
    found = [
        soft_classification_loss(losses, is_background, r, image_index, 3, normalizer)
        for r in (reliability, other)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("normalizer", ["joint", "paper"])
def test_no_rois_give_zero_connected_to_the_graph(normalizer):
    losses = torch.zeros(0, requires_grad=True)
    nothing = torch.zeros(0)
    loss = soft_classification_loss(losses, nothing.bool(), nothing, nothing.long(), 2, normalizer)
    loss.backward()
    assert float(loss) == 0 and losses.grad is not None


@pytest.mark.parametrize("name", ["basic", "nopos"])
def test_regression_loss_is_that_of_the_official_code_or_of_the_paper(name):
    case = load_oracle(f"e_reg_{name}")
    foreground = case["labels"] < 80
    sums = torch.zeros(2).index_add(0, case["image_index"], case["l1_per_roi"] * foreground)
    counts = torch.zeros(2).index_add(0, case["image_index"], foreground.float())
    sampled = box_regression_loss(sums, counts, int(case["n_all"]), "sampled")
    assert float(sampled) == pytest.approx(float(case["mmdet_loss_bbox"]), rel=1e-5)
    literal = box_regression_loss(sums, counts, int(case["n_all"]), "foreground")
    assert float(literal) == pytest.approx(float(case["paper_loss_reg"]), rel=1e-5)


def test_paper_regression_loss_equals_a_loop_over_equation_10():
    rng = np.random.default_rng(5)
    losses = [rng.exponential(1.0, n) for n in (7, 0, 12)]
    expected = sum(float(np.mean(x)) if len(x) else 0.0 for x in losses) / 3
    found = box_regression_loss(
        torch.tensor([x.sum() for x in losses]),
        torch.tensor([len(x) for x in losses]),
        1536,
        "foreground",
    )
    assert float(found) == pytest.approx(expected, rel=1e-12)
