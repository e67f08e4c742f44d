"""Masks carried from view to view: they lie on the object, to a fraction of a pixel.

The truth is drawn without any of the code under test: shapes are formulas in the frame of the
original image, and a view of them is the formula at the inverse image of the view's points.
"""

import math

import numpy as np
import pytest
import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import BitMasks

from soft_teacher.modeling.pseudo_masks import carry_masks, cell_centers, sample_masks
from soft_teacher.modeling.view_geometry import project_boxes, view_to_view

SIDE = 28
# Height and width of the original, and of all views here but the scaled ones.
SIZE = (160, 200)
CENTER, RADIUS = np.array([90.3, 71.8]), 31.0


def disc(x, y):
    return (x - CENTER[0]) ** 2 + (y - CENTER[1]) ** 2 <= RADIUS**2


def half_plane(x, y):
    """One side of a slanted line through the disc's center; the box around it is the disc's."""
    in_box = np.maximum(abs(x - CENTER[0]), abs(y - CENTER[1])) <= RADIUS
    return in_box & (0.8 * (x - CENTER[0]) + 0.6 * (y - CENTER[1]) <= 0)


BOX = torch.tensor([[*(CENTER - RADIUS), *(CENTER + RADIUS)]], dtype=torch.float32)


def matrix_of(a, b, c, d, e, f):
    return np.array([[a, b, c], [d, e, f], [0.0, 0.0, 1.0]])


def turned(degrees):
    """A rotation about the middle of the original."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = SIZE[1] / 2, SIZE[0] / 2
    return matrix_of(cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


IDENTITY = np.eye(3)
FLIP = matrix_of(-1, 0, SIZE[1], 0, 1, 0)
SCALE = matrix_of(2, 0, 0, 0, 2, 0)
SHRINK = matrix_of(0.7, 0, 0, 0, 0.55, 0)
SHIFT = matrix_of(1, 0, 17, 0, 1, -9)
TURN = turned(25)
SHEAR = matrix_of(1, 0.4, 0, 0.2, 1.08, 0)
VIEWS = {
    "flip": FLIP,
    "scale": SCALE,
    "shrink": SHRINK,
    "translation": SHIFT,
    "rotation": TURN,
    "shear": SHEAR,
    "all at once": SHEAR @ TURN @ FLIP @ SHRINK,
}


def size_of(matrix):
    """Height and width of a view large enough for the original; whole pixels."""
    scale = max(1.0, abs(np.linalg.det(matrix[:2, :2])) ** 0.5)
    return math.ceil(SIZE[0] * scale), math.ceil(SIZE[1] * scale)


def draw(shape, matrix, points):
    """Whether the shape, seen in the view of a matrix, holds each of the points (..., 2)."""
    back = np.linalg.inv(matrix)
    x, y = (back[i, 0] * points[..., 0] + back[i, 1] * points[..., 1] + back[i, 2] for i in (0, 1))
    return shape(x, y)


def teacher_mask(shape, matrix):
    """Box in the view of a matrix, (1, 4), and the share of each cell that the shape covers."""
    box = project_boxes(BOX, torch.from_numpy(matrix).float(), size_of(matrix))
    x0, y0, x1, y1 = box[0].double().tolist()
    fine = 16 * SIDE
    share = (np.arange(fine) + 0.5) / fine
    points = np.stack(np.meshgrid(x0 + share * (x1 - x0), y0 + share * (y1 - y0)), axis=-1)
    covered = draw(shape, matrix, points).reshape(SIDE, 16, SIDE, 16).mean(axis=(1, 3))
    return box, torch.from_numpy(covered).float()[None, None]


def carried(shape, weak, strong, rois):
    """Probabilities and known cells of boxes in the strong view, from a mask in the weak one."""
    box, mask = teacher_mask(shape, weak)
    n = len(rois)
    to_weak = view_to_view(strong, weak, torch.device("cpu"))
    return carry_masks(
        mask.expand(n, 1, SIDE, SIDE), box.expand(n, 4), rois, to_weak, size_of(weak), SIDE
    )


def rois_around(strong):
    """The object's box in the strong view, and boxes that a detector may propose for it."""
    box = project_boxes(BOX, torch.from_numpy(strong).float(), size_of(strong))
    sides = (box[:, 2:] - box[:, :2]).repeat(1, 2)
    moves = torch.tensor([[0, 0, 0, 0], [-0.2, -0.1, 0.15, 0.2], [0.1, 0.15, -0.05, 0.1]])
    return box + moves * sides


def truth_in(shape, strong, rois):
    """What Detectron2 makes of the shape, drawn in the strong view, as ground truth of a RoI."""
    height, width = size_of(strong)
    points = np.stack(np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5), axis=-1)
    raster = torch.from_numpy(draw(shape, strong, points))
    return BitMasks(raster.expand(len(rois), height, width)).crop_and_resize(rois, SIDE)


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("shape", [disc, half_plane])
def test_a_carried_mask_is_the_ground_truth_of_the_other_view(shape, name):
    """All cells but some of those that the outline crosses; a mirrored mask misses by 30 %."""
    for weak, strong in ((IDENTITY, VIEWS[name]), (VIEWS[name], IDENTITY), (FLIP, VIEWS[name])):
        rois = rois_around(strong)
        probabilities, known = carried(shape, weak, strong, rois)
        wrong = ((probabilities >= 0.5) != truth_in(shape, strong, rois)) & known
        assert known.float().mean() > 0.9
        # An outline crosses about 3 of a row's 28 cells. Where both views are turned against the
        # boxes' axes, the teacher's cells are larger than the student's.
        assert wrong.float().mean(dim=(1, 2)).max() < 0.025


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("weak", [IDENTITY, FLIP, SCALE])
def test_a_carried_disc_is_centered_where_the_matrix_puts_its_center(weak, name):
    """Half a pixel of a wrong frame would show: centers agree to a twentieth of a pixel."""
    strong = VIEWS[name]
    rois = rois_around(strong)[:2]
    probabilities, _ = carried(disc, weak, strong, rois)
    weights = probabilities[..., None]
    found = (cell_centers(rois, SIDE) * weights).sum(dim=(1, 2)) / weights.sum(dim=(1, 2))
    wanted = strong[:2, :2] @ CENTER + strong[:2, 2]
    assert found.numpy() == pytest.approx(np.stack([wanted, wanted]), abs=0.05)


def test_a_mask_seen_at_twice_the_scale_does_not_move():
    """The same cells, whether a view has twice the pixels or not."""
    rois = torch.tensor([[50.0, 40, 106, 96], [61, 43, 117, 99]])
    plain, _ = carried(disc, IDENTITY, IDENTITY, rois)
    scaled, _ = carried(disc, IDENTITY, SCALE, 2 * rois)
    torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-5)
    assert 0.2 < float(plain.mean()) < 0.95


def test_masks_are_pasted_as_detectron2_pastes_them():
    """Boxes whose cells are the pixels of the view: Detectron2's own pixels, bit by bit."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(5, 1, 14, 14, generator=generator)
    corner = torch.rand(5, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 12 + torch.rand(5, 2, generator=generator) * 50], dim=1)
    side = 128
    pasted = paste_masks_in_image(masks[:, 0], boxes, (side, side), threshold=0.5)
    whole = torch.tensor([[0.0, 0, side, side]]).expand(5, 4)
    found, known = carry_masks(masks, boxes, whole, torch.eye(3), (side, side), side)
    assert torch.equal(found >= 0.5, pasted)
    assert known.all() and pasted.any(dim=(1, 2)).all()


def test_outside_the_teachers_box_is_background_that_is_known():
    box, mask = teacher_mask(lambda x, y: np.ones_like(x, bool), IDENTITY)
    beside = torch.tensor([[float(box[0, 2]) + 2, 40.0, float(box[0, 2]) + 30, 90]])
    probabilities, known = carry_masks(mask, box, beside, torch.eye(3), SIZE, SIDE)
    assert (probabilities == 0).all() and known.all()


@pytest.mark.parametrize("name", ["rotation", "shear", "translation"])
def test_cells_from_outside_the_weak_image_are_unknown_and_no_others(name):
    """The corner of the strong view into which the image was turned, sheared or shifted."""
    strong = VIEWS[name]
    corners = torch.tensor([[0.0, 0, 60, 50], [120, 100, 200, 160], [0, 110, 50, 160]])
    _, known = carried(disc, FLIP, strong, corners)
    points = cell_centers(corners, SIDE).double().numpy()
    inside = draw(lambda x, y: (x > 0) & (x < SIZE[1]) & (y > 0) & (y < SIZE[0]), strong, points)
    assert np.array_equal(known.numpy(), inside)
    assert 0.02 < 1 - inside.mean() < 0.9


def test_autocast_moves_no_mask():
    """Half precision would shift points at the right end of a large view by pixels."""
    rois = torch.tensor([[1201.3, 40, 1257.9, 96]])
    far = matrix_of(1, 0, 1150, 0, 1, 0)
    plain, _ = carried(disc, IDENTITY, far, rois)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, _ = carried(disc, IDENTITY, far, rois)
    assert torch.equal(cast, plain) and float(plain.mean()) > 0.5


def test_no_boxes_need_no_special_case():
    nothing = torch.zeros(0, 4)
    probabilities, known = carry_masks(
        torch.zeros(0, 1, SIDE, SIDE), nothing, nothing, torch.eye(3), SIZE, 14
    )
    assert probabilities.shape == known.shape == (0, 14, 14)


def test_cells_are_read_where_bilinear_interpolation_by_hand_reads_them():
    """Between four cell centers of a 2 x 2 mask, at a cell center, and beyond the last one."""
    mask = torch.tensor([[[[0.1, 0.5], [0.3, 0.9]]]])
    box = torch.tensor([[10.0, 20, 14, 24]])
    points = torch.tensor([[[[12.0, 22], [11, 21], [13, 23], [14, 23], [12.5, 21]]]])
    found = sample_masks(mask, box, points)[0, 0].tolist()
    # On the box's edge a mask has faded to half.
    assert found == pytest.approx([0.45, 0.1, 0.9, 0.45, 0.4], abs=1e-6)
