import math

import numpy as np
import pytest

from soft_teacher.data.geometry import (
    AffineTransform,
    RandomGeometry,
    rotation,
    shear,
    translation,
    warp,
)

HEIGHT, WIDTH = 120, 160
# The bright rectangle, xyxy; it stays inside under every matrix below.
BOX = np.array([60.0, 45.0, 90.0, 65.0])
MATRICES = {
    "identity": np.eye(3),
    "translate_x": translation(10.5, 0.0),
    "translate_y": translation(0.0, -7.25),
    "rotate": rotation(30.0, (WIDTH / 2, HEIGHT / 2)),
    "rotate_back": rotation(-17.0, (WIDTH / 2, HEIGHT / 2)),
    "shear_x": shear(-30.0, 0.0),
    "shear_y": shear(0.0, 20.0),
    "shear_both": shear(20.0, -25.0),
}


def rectangle():
    image = np.zeros((HEIGHT, WIDTH), np.uint8)
    x0, y0, x1, y1 = BOX.astype(int)
    image[y0:y1, x0:x1] = 200
    return image


def moments(image):
    """Mass, center and covariance of the light, pixel centers at +0.5."""
    ys, xs = np.mgrid[: image.shape[0], : image.shape[1]] + 0.5
    weight = image.astype(float) / 200
    mass = weight.sum()
    points = np.stack([xs, ys], -1)
    center = (points * weight[..., None]).sum((0, 1)) / mass
    spread = points - center
    covariance = np.einsum("hw,hwi,hwj->ij", weight, spread, spread) / mass
    return mass, center, covariance


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_the_light_of_a_rectangle_moves_exactly_as_the_matrix_says(matrix):
    mass, center, covariance = moments(AffineTransform(matrix, 0).apply_image(rectangle()))
    linear = matrix[:2, :2]
    old_mass, old_center, old_covariance = moments(rectangle())
    assert center == pytest.approx(linear @ old_center + matrix[:2, 2], abs=0.03)
    assert mass == pytest.approx(old_mass * abs(np.linalg.det(linear)), rel=0.01)
    # Interpolation blurs by a fraction of a pixel.
    assert np.abs(covariance - linear @ old_covariance @ linear.T).max() < 0.6


@pytest.mark.parametrize("matrix", MATRICES.values(), ids=MATRICES)
def test_the_moved_box_is_the_bounding_box_of_the_moved_rectangle(matrix):
    transform = AffineTransform(matrix, 0)
    ys, xs = np.nonzero(transform.apply_image(rectangle()) >= 100)
    found = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert transform.apply_box(BOX[None])[0] == pytest.approx(found, abs=1.0)


def test_shifts_by_whole_pixels_move_pixels_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    moved = AffineTransform(translation(4, -3), 9).apply_image(image)
    assert np.array_equal(moved[:-3, 4:], image[3:, :-4])
    assert (moved[-3:] == 9).all() and (moved[:, :4] == 9).all()


@pytest.mark.parametrize("distance", [1, -1, 7, -19, 20, 30, -31, 45])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_shifts_by_whole_pixels_are_what_a_warp_gives(distance, axis, channels):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, *channels), dtype=np.uint8)
    matrix = translation(*((0.0, distance) if axis == 0 else (distance, 0.0)))
    found = AffineTransform(matrix, 125).apply_image(image)
    assert np.array_equal(found, warp(image, matrix, (20, 30), 125))


def test_a_shift_along_both_axes_is_one_along_each():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    moved = AffineTransform(translation(-2, 5), 9).apply_image(image)
    assert np.array_equal(moved[5:, :-2], image[:-5, 2:])
    assert (moved[:5] == 9).all() and (moved[:, -2:] == 9).all()


def test_a_quarter_turn_about_the_center_is_exact():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    turned = AffineTransform(rotation(90, (8, 8)), 0).apply_image(image)
    assert np.array_equal(turned, np.rot90(image, -1))


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (20, 30, 3)])
def test_shape_and_type_of_images_survive_whatever_the_strides(shape):
    image = np.full(shape, 77, np.uint8)[::-1, ::-1]
    moved = AffineTransform(rotation(10, (15, 10)), 125).apply_image(image)
    assert moved.shape == shape and moved.dtype == np.uint8
    assert set(np.unique(moved)) >= {77, 125}


def test_masks_keep_their_labels_and_are_empty_outside():
    labels = np.full((20, 30), 3, np.uint8)
    moved = AffineTransform(rotation(25, (15, 10)), 125).apply_segmentation(labels)
    assert set(np.unique(moved)) == {0, 3}


def test_inverse_brings_points_back():
    points = np.random.default_rng(0).uniform(0, 100, (20, 2))
    transform = AffineTransform(MATRICES["shear_both"], 0)
    assert np.allclose(transform.inverse().apply_coords(transform.apply_coords(points)), points)


def test_shear_factors_are_tanh_of_the_angle_x_first_then_y():
    x, y = 12.0, 7.0
    along_x = x + math.tanh(math.radians(30)) * y
    along_y = y + math.tanh(math.radians(-20)) * along_x
    moved = AffineTransform(shear(30, -20), 0).apply_coords(np.array([[x, y]]))
    assert moved[0] == pytest.approx([along_x, along_y])
    assert math.tanh(math.radians(30)) == pytest.approx(0.48, abs=0.001)


def kind_and_magnitude(matrix):
    """What a drawn matrix does, told from its entries alone."""
    linear, shift = matrix[:2, :2], matrix[:2, 2]
    if np.array_equal(linear, np.eye(2)):
        return ("translate_x", shift[0] / WIDTH) if shift[0] else ("translate_y", shift[1] / HEIGHT)
    if np.allclose(linear @ linear.T, np.eye(2)):
        center = np.array([WIDTH / 2, HEIGHT / 2])
        assert np.allclose(linear @ center + shift, center)
        return "rotate", math.degrees(math.atan2(linear[1, 0], linear[0, 0]))
    assert np.isclose(np.linalg.det(linear), 1) and not shift.any()
    return "shear", math.degrees(math.atanh(linear[0, 1]))


def draws(count, **ranges):
    np.random.seed(0)
    augmentation = RandomGeometry(fill=125, **ranges)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    found = {}
    for _ in range(count):
        kind, magnitude = kind_and_magnitude(augmentation.get_transform(image).matrix)
        found.setdefault(kind, []).append(magnitude)
    return found


def test_drawn_shifts_are_by_whole_pixels():
    found = draws(400, max_translate=0.1, max_rotate=0.0, max_shear=0.0)
    for kind, length in (("translate_x", WIDTH), ("translate_y", HEIGHT)):
        pixels = np.array(found[kind]) * length
        assert np.allclose(pixels, pixels.round()) and len(set(pixels.round())) > 10


def test_each_of_four_groups_is_as_likely_and_fills_its_range():
    found = draws(4000, max_translate=0.1, max_rotate=30.0, max_shear=25.0)
    ranges = {"translate_x": 0.1, "translate_y": 0.1, "rotate": 30.0, "shear": 25.0}
    assert found.keys() == ranges.keys()
    for kind, magnitudes in found.items():
        assert 900 < len(magnitudes) < 1100
        assert 0.97 * ranges[kind] < max(magnitudes) <= ranges[kind]
        assert -ranges[kind] <= min(magnitudes) < -0.97 * ranges[kind]


@pytest.mark.parametrize(
    ("zero", "left"),
    [
        ("max_translate", {"rotate", "shear"}),
        ("max_rotate", {"translate_x", "translate_y", "shear"}),
        ("max_shear", {"translate_x", "translate_y", "rotate"}),
    ],
)
def test_a_range_of_zero_leaves_its_group_out(zero, left):
    ranges = {"max_translate": 0.1, "max_rotate": 30.0, "max_shear": 30.0, zero: 0.0}
    assert draws(200, **ranges).keys() == left
