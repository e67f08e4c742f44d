"""INPUT.AUG.MODE: exactly one operation, drawn as ever, or each with a probability of its own."""

from types import SimpleNamespace

import numpy as np
import pytest
from detectron2.data import transforms as T

from soft_teacher.data.augmentation import labeled_augmentations, strong_augmentations
from soft_teacher.data.color import color_transform
from soft_teacher.data.erase import EraseTransform, RandomErase
from soft_teacher.data.geometry import (
    AffineTransform,
    IndependentGeometry,
    rotation,
    shear,
    translation,
)
from soft_teacher.data.mapper import TwoViewMapper, make_view
from soft_teacher.data.randomness import seeded_numpy
from soft_teacher.data.rendering import ShapeInput

HEIGHT, WIDTH = 60, 80
IMAGE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
COLORS = "identity autocontrast equalize solarize color contrast brightness sharpness posterize"
GROUPS = ["translate_x", "translate_y", "rotate", "shear"]
NUM_DRAWS = 4000


def draw(augmentations, seed):
    """The transforms of one draw, and the shape that the view has before them."""
    with seeded_numpy(seed):
        return T.AugmentationList(augmentations)(ShapeInput(IMAGE.shape)).transforms


def draw_strong_by_hand(cfg, seed):
    """What the strong view drew before there were modes, call by call of numpy's generator."""
    np.random.seed(seed)
    short = np.random.randint(cfg.INPUT.MIN_SIZE_TRAIN[0], cfg.INPUT.MIN_SIZE_TRAIN[1] + 1)
    size = (HEIGHT, WIDTH, short, cfg.INPUT.MAX_SIZE_TRAIN)
    height, width = T.ResizeShortestEdge.get_output_shape(*size)
    drawn = SimpleNamespace(size=(height, width), flipped=np.random.uniform(0, 1.0) < 0.5)
    drawn.color_first = None
    for place in np.random.permutation(2):
        drawn.color_first = place == 0 if drawn.color_first is None else drawn.color_first
        if place == 0:
            name = np.random.choice(COLORS.split())
            drawn.color = (str(name), np.random.randint(1, 10))
            continue
        group = np.random.choice(GROUPS)
        if group == "shear":
            drawn.matrix = shear(*(np.random.uniform(-30.0, 30.0) for _ in range(2)))
        elif group == "rotate":
            drawn.matrix = rotation(np.random.uniform(-30.0, 30.0), (width / 2, height / 2))
        elif group == "translate_x":
            drawn.matrix = translation(round(width * np.random.uniform(-0.1, 0.1)), 0)
        else:
            drawn.matrix = translation(0, round(height * np.random.uniform(-0.1, 0.1)))
    drawn.patches = []
    for _ in range(np.random.randint(1, 5)):
        ratio = np.random.uniform(0.0, 0.2)
        h, w = int(ratio * height), int(ratio * width)
        x, y = np.random.randint(0, width - w + 1), np.random.randint(0, height - h + 1)
        drawn.patches.append([x, y, x + w, y + h])
    return drawn


def test_by_default_the_strong_view_is_drawn_as_it_was_before_there_were_modes(cfg):
    augmentations = strong_augmentations(cfg)
    orders = set()
    for seed in range(200):
        resize, flip, first, second, erase = draw(augmentations, seed)
        expected = draw_strong_by_hand(cfg, seed)
        assert (resize.new_h, resize.new_w) == expected.size
        assert (type(flip).__name__ == "FastFlip") == expected.flipped
        color, geometry = (first, second) if expected.color_first else (second, first)
        orders.add(expected.color_first)
        wanted = color_transform(*expected.color, cfg.INPUT.FORMAT)
        assert np.array_equal(color.apply_image(IMAGE), wanted.apply_image(IMAGE))
        assert np.array_equal(geometry.matrix, expected.matrix)
        assert np.array_equal(erase.patches, expected.patches)
    assert orders == {True, False}


def independent(cfg, **keys):
    cfg.INPUT.AUG.MODE = "independent"
    for key, value in keys.items():
        cfg.INPUT.AUG[key] = value
    return cfg


def num_colors(transforms):
    return sum(isinstance(x, T.ColorTransform) for x in transforms)


def test_independent_color_operations_come_as_often_as_independent_events(cfg):
    augmentations = labeled_augmentations(independent(cfg))
    counts = [num_colors(draw(augmentations, seed)) for seed in range(NUM_DRAWS)]
    # Eight operations that change something, with 0.25 each: a binomial distribution.
    assert np.mean(counts) == pytest.approx(8 * 0.25, abs=0.08)
    assert np.var(counts) == pytest.approx(8 * 0.25 * 0.75, rel=0.1)
    assert np.mean(np.equal(counts, 0)) == pytest.approx(0.75**8, abs=0.02)


@pytest.mark.parametrize(("probability", "count"), [(0.0, 0), (1.0, 8)])
def test_the_probability_of_color_operations_is_that_of_the_config(cfg, probability, count):
    augmentations = labeled_augmentations(independent(cfg, COLOR_PROBABILITY=probability))
    assert {num_colors(draw(augmentations, seed)) for seed in range(20)} == {count}


def geometry_of(probability, **ranges):
    limits = {"max_translate": 0.1, "max_rotate": 30.0, "max_shear": 30.0, **ranges}
    return IndependentGeometry(**limits, fill=125, probability=probability)


def test_independent_geometric_operations_come_as_often_as_independent_events(cfg):
    augmentation = geometry_of(0.3)
    with seeded_numpy(0):
        drawn = [augmentation.get_transform(IMAGE) for _ in range(NUM_DRAWS)]
    none = [not isinstance(x, AffineTransform) for x in drawn]
    assert np.mean(none) == pytest.approx(0.7**4, abs=0.03)
    shifts = [isinstance(x, AffineTransform) and x.is_whole_shift for x in drawn]
    # A shift along x or y, and neither a rotation nor a shear.
    assert np.mean(shifts) == pytest.approx((1 - 0.7**2) * 0.7**2, abs=0.03)


def test_drawn_operations_become_one_map_that_is_their_product():
    augmentation = geometry_of(1.0)
    for seed in range(50):
        with seeded_numpy(seed):
            found = augmentation.get_transform(IMAGE).matrix
        np.random.seed(seed)
        steps = []
        for group in GROUPS:
            np.random.uniform()
            if group.startswith("translate"):
                side = WIDTH if group == "translate_x" else HEIGHT
                pixels = round(side * np.random.uniform(-0.1, 0.1))
                steps.append(translation(*((pixels, 0) if side == WIDTH else (0, pixels))))
            elif group == "rotate":
                steps.append(rotation(np.random.uniform(-30, 30), (WIDTH / 2, HEIGHT / 2)))
            else:
                steps.append(shear(np.random.uniform(-30, 30), np.random.uniform(-30, 30)))
        point = np.array([11.0, 23.0, 1.0])
        for step in steps:
            point = step @ point
        assert found @ [11.0, 23.0, 1.0] == pytest.approx(point)


def test_a_view_remembers_the_matrix_by_which_its_pixels_moved(cfg):
    """A bright square is found in the view where the matrix says."""
    independent(cfg, GEOMETRY_PROBABILITY=1.0, COLOR=False, ERASE_PATCHES=(0, 0))
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (200, 240), 400
    cfg.INPUT.AUG.FILL = 0
    image = np.zeros((120, 160, 3), np.uint8)
    image[55:65, 75:85] = 255
    augmentations = T.AugmentationList(strong_augmentations(cfg))
    record = {"file_name": "x", "image_id": 1}
    for seed in range(30):
        with seeded_numpy(seed):
            view, transforms = make_view(image, record, augmentations)
        pixels = view["image"][0].numpy().astype(float)
        ys, xs = np.mgrid[: pixels.shape[0], : pixels.shape[1]] + 0.5
        center = [(xs * pixels).sum() / pixels.sum(), (ys * pixels).sum() / pixels.sum()]
        assert center == pytest.approx((view["matrix"] @ [80.0, 60.0, 1.0])[:2], abs=0.5)
        # One resize, perhaps a flip, and one map for all of the four operations.
        assert sum(isinstance(x, AffineTransform) for x in transforms.transforms) == 1


def test_independent_views_depend_on_the_sample_seed_alone(cfg, coco):
    mapper = TwoViewMapper(independent(cfg))
    record = {"file_name": str(coco / "images/0.png"), "image_id": 0}
    np.random.seed(1)
    first, other = mapper(record, 77), mapper(record, 78)
    np.random.seed(2)
    again = mapper(record, 77)
    for name in ("weak", "strong"):
        assert first[name]["image"].equal(again[name]["image"])
        assert np.array_equal(first[name]["matrix"], again[name]["matrix"])
    assert not np.array_equal(first["strong"]["matrix"], other["strong"]["matrix"])


def test_erased_patches_have_at_least_the_smallest_size():
    image = np.zeros((500, 1000, 3), np.uint8)
    with seeded_numpy(0):
        drawn = [RandomErase((1, 5), 0.05, 0.2, 0).get_transform(image) for _ in range(200)]
    assert all(isinstance(x, EraseTransform) for x in drawn)
    heights = np.concatenate([x.patches[:, 3] - x.patches[:, 1] for x in drawn])
    assert 25 <= heights.min() < 30 and 95 < heights.max() <= 100


@pytest.mark.parametrize("key", ["COLOR_PROBABILITY", "GEOMETRY_PROBABILITY"])
def test_a_probability_beyond_one_is_refused_by_key(cfg, key):
    with pytest.raises(ValueError, match=f"{key} is 1.5; it must lie in 0 to 1"):
        strong_augmentations(independent(cfg, **{key: 1.5}))
