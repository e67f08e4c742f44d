"""Eq. 7-9: jittered boxes and the box regression variance."""

import numpy as np
import pytest
import torch

from oracle import load_oracle
from soft_teacher.modeling.box_jitter import box_regression_variance, draw_noise, jitter_boxes


def test_jittered_boxes_are_those_of_the_official_code():
    case = load_oracle("b_jitter")
    jittered = jitter_boxes(case["boxes"], case["noise"], float(case["frac"]))
    torch.testing.assert_close(jittered, case["ms_jittered"], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", ["a_unc_classwise", "a_unc_agnostic"])
def test_variance_is_that_of_the_official_code_or_of_the_paper(name):
    case = load_oracle(name)
    per_axis = box_regression_variance(case["refined"], case["boxes"], "per_axis")
    torch.testing.assert_close(per_axis, case["ms_unc"], rtol=1e-5, atol=1e-7)
    paper = box_regression_variance(case["refined"], case["boxes"], "paper")
    torch.testing.assert_close(paper, case["paper_unc_ddof1"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("definition", ["per_axis", "paper"])
def test_variance_equals_a_loop_over_boxes_and_coordinates(definition):
    rng = np.random.default_rng(3)
    corner = rng.uniform(0, 200, (12, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.2, 90, (12, 2))], axis=1)
    refined = boxes + rng.normal(0, 2, (7, 12, 4))
    expected = []
    for i in range(12):
        reference = refined[:, i].mean(axis=0) if definition == "per_axis" else boxes[i]
        width, height = (max(reference[k + 2] - reference[k], 1.0) for k in (0, 1))
        total = 0.0
        for k in range(4):
            sigma = np.std(refined[:, i, k], ddof=1)
            if definition == "per_axis":
                total += sigma / (width if k in (0, 2) else height)
            else:
                total += sigma / (0.5 * (width + height))
        expected.append(total / 4)
    found = box_regression_variance(torch.tensor(refined), torch.tensor(boxes), definition)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)


def test_no_boxes_have_no_variance():
    found = box_regression_variance(torch.zeros(10, 0, 4), torch.zeros(0, 4), "per_axis")
    assert found.shape == (0,)


def test_noise_has_the_spread_that_its_name_says():
    torch.manual_seed(0)
    boxes = torch.zeros(500, 4)
    gaussian = draw_noise(50, boxes, "gaussian")
    assert abs(float(gaussian.std()) - 1) < 0.02
    assert float(gaussian.abs().max()) > 2
    uniform = draw_noise(50, boxes, "uniform")
    assert float(uniform.abs().max()) <= 1
    assert abs(float(uniform.std()) - 3**-0.5) < 0.01
    assert abs(float(torch.corrcoef(uniform.reshape(-1, 4).T)[0, 2])) < 0.03
