"""Boxes between the views."""

import numpy as np
import pytest
import torch

from oracle import load_oracle
from soft_teacher.modeling.view_geometry import OUTLINES, project_boxes, view_to_view

CPU = torch.device("cpu")
CASES = ["identity", "flip_weak", "scale_flip_both", "translate", "pushed_out"]


@pytest.mark.parametrize("name", CASES)
def test_boxes_arrive_where_the_official_code_puts_them(name):
    case = load_oracle(f"c_project_{name}")
    weak, strong = (case[k].double().numpy() for k in ("M_weak", "M_strong"))
    to_strong = view_to_view(weak, strong, CPU)
    found = project_boxes(case["boxes_weak"], to_strong, tuple(case["strong_shape"].tolist()))
    torch.testing.assert_close(found, case["ms_boxes_strong"], rtol=1e-5, atol=1e-3)
    to_weak = view_to_view(strong, weak, CPU)
    found = project_boxes(case["proposals_strong"], to_weak, tuple(case["weak_shape"].tolist()))
    torch.testing.assert_close(found, case["ms_proposals_weak"], rtol=1e-5, atol=1e-3)


def test_a_box_carried_to_the_other_view_and_back_is_the_same_box():
    weak = np.array([[-1.7, 0, 1088], [0, 1.7, 0], [0, 0, 1]])
    strong = np.array([[0.6, 0, 31.5], [0, 0.6, -7.25], [0, 0, 1]])
    generator = torch.Generator().manual_seed(2)
    corner = torch.rand(50, 2, generator=generator) * 200 + 300
    boxes = torch.cat([corner, corner + torch.rand(50, 2, generator=generator) * 100 + 1], dim=1)
    there = project_boxes(boxes, view_to_view(weak, strong, CPU), (2000, 2000))
    back = project_boxes(there, view_to_view(strong, weak, CPU), (2000, 2000))
    assert not torch.allclose(there, boxes, atol=10)
    torch.testing.assert_close(back, boxes, rtol=0, atol=1e-3)


def test_a_rotated_box_becomes_the_box_around_its_corners():
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 50], [np.sin(angle), np.cos(angle), 5]])
    matrix = torch.eye(3)
    matrix[:2] = torch.from_numpy(turn)
    corners = np.array([[x, y, 1] for x in (10, 40) for y in (20, 30)]) @ turn.T
    found = project_boxes(torch.tensor([[10.0, 20, 40, 30]]), matrix, (500, 500))[0].numpy()
    np.testing.assert_allclose(found, [*corners.min(axis=0), *corners.max(axis=0)], rtol=1e-5)


@pytest.mark.parametrize("linear", [[[0.8, -0.3], [0.4, 1.1]], [[-1.2, 0.5], [0.0, 0.7]]])
def test_the_ellipse_of_a_box_is_bounded_to_the_point(linear):
    matrix = np.eye(3)
    matrix[:2] = np.column_stack([linear, [150.0, 120.0]])
    x0, y0, x1, y1 = box = [10.0, 20, 40, 90]
    angles = np.linspace(0, 2 * np.pi, 100_000)
    ellipse = np.stack(
        [
            (x0 + x1) / 2 + (x1 - x0) / 2 * np.cos(angles),
            (y0 + y1) / 2 + (y1 - y0) / 2 * np.sin(angles),
            np.ones_like(angles),
        ]
    )
    points = (matrix @ ellipse)[:2]
    found = project_boxes(
        torch.tensor([box]), torch.from_numpy(matrix).float(), (500, 500), "ellipse"
    )
    np.testing.assert_allclose(
        found[0].numpy(), [*points.min(axis=1), *points.max(axis=1)], atol=1e-3
    )


def test_both_outlines_are_the_same_where_nothing_is_turned_or_sheared():
    matrix = torch.tensor([[-1.3, 0, 400], [0, 0.7, -9], [0, 0, 1]])
    boxes = torch.tensor([[10.0, 20, 40, 90], [300, 5, 420, 30]])
    first, second = (project_boxes(boxes, matrix, (300, 380), x) for x in OUTLINES)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-4)


def test_autocast_does_not_move_boxes():
    boxes = torch.tensor([[101.3, 707.7, 999.1, 1200.9]])
    source = np.array([[1.37, 0.2, 3.0], [0.1, 1.11, 4.0], [0, 0, 1]])
    target = np.array([[0.77, 0, 13.0], [0, 0.77, 4.5], [0, 0, 1]])
    expected = project_boxes(boxes, view_to_view(source, target, CPU), (2000, 2000))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = project_boxes(boxes, view_to_view(source, target, CPU), (2000, 2000))
    assert torch.equal(found, expected)
