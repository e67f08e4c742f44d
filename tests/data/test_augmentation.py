import numpy as np
import pytest
from detectron2.data import transforms as T

from soft_teacher.data.augmentation import (
    labeled_augmentations,
    strong_augmentations,
    weak_augmentations,
)
from soft_teacher.data.erase import EraseTransform, RandomErase
from soft_teacher.data.geometry import AffineTransform
from soft_teacher.data.randomness import join_seeds, seeded_numpy, seeded_sample

RESIZE_AND_FLIP = {"FastResize", "FastFlip", "NoOpTransform"}
IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def applied(augmentations, seed):
    """Names of the transforms that one draw applies, in order."""
    with seeded_numpy(seed):
        transforms = T.AugmentationList(augmentations)(T.AugInput(IMAGE))
    return [type(transform).__name__ for transform in transforms.transforms]


def test_the_weak_view_is_resized_and_flipped_and_nothing_else(cfg):
    for seed in range(30):
        resize, flip = applied(weak_augmentations(cfg), seed)
        assert resize == "FastResize" and flip in ("FastFlip", "NoOpTransform")


def test_the_labeled_view_adds_one_color_operation_and_no_geometry(cfg):
    seen = set()
    for seed in range(60):
        names = applied(labeled_augmentations(cfg), seed)
        assert len(names) == 3 and names[0] == "FastResize"
        seen.add(names[2])
    assert seen == {"ColorTransform", "PixelwiseColor", "NoOpTransform"}


def test_the_strong_view_has_color_and_geometry_in_either_order_then_erasing(cfg):
    places = []
    for seed in range(200):
        names = applied(strong_augmentations(cfg), seed)
        assert len(names) == 5
        assert names[0] == "FastResize" and names[4] == "EraseTransform"
        places.append(names.index("AffineTransform"))
    assert set(places) == {2, 3}
    assert 70 < places.count(2) < 130


def test_what_is_switched_off_is_absent(cfg):
    cfg.INPUT.AUG.COLOR = False
    cfg.INPUT.AUG.ERASE_PATCHES = (0, 0)
    names = {name for seed in range(20) for name in applied(strong_augmentations(cfg), seed)}
    assert names == RESIZE_AND_FLIP | {"AffineTransform"}
    cfg.INPUT.AUG.MAX_TRANSLATE = cfg.INPUT.AUG.MAX_ROTATE = cfg.INPUT.AUG.MAX_SHEAR = 0.0
    names = {name for seed in range(20) for name in applied(strong_augmentations(cfg), seed)}
    assert names == RESIZE_AND_FLIP


def test_geometry_is_off_by_its_switch_alone(cfg):
    cfg.INPUT.AUG.GEOMETRY = False
    names = {name for seed in range(20) for name in applied(strong_augmentations(cfg), seed)}
    assert "AffineTransform" not in names and "EraseTransform" in names


def test_the_fill_value_of_the_config_reaches_geometry_and_erasing(cfg):
    cfg.INPUT.AUG.FILL = 33
    with seeded_numpy(0):
        transforms = T.AugmentationList(strong_augmentations(cfg))(T.AugInput(IMAGE)).transforms
    fills = [t.fill for t in transforms if isinstance(t, AffineTransform | EraseTransform)]
    assert fills == [33, 33]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MAX_TRANSLATE", -0.1),
        ("MAX_ROTATE", 200.0),
        ("MAX_SHEAR", -1.0),
        ("ERASE_PATCHES", (4, 1)),
        ("ERASE_PATCHES", (1,)),
        ("ERASE_MAX_SIZE", 1.5),
        ("ERASE_MIN_SIZE", 0.3),
        ("MODE", "all"),
    ],
)
def test_senseless_magnitudes_are_refused_by_key(cfg, key, value):
    cfg.INPUT.AUG[key] = value
    with pytest.raises(ValueError, match=key):
        strong_augmentations(cfg)


def test_a_crop_is_refused_rather_than_ignored(cfg):
    cfg.INPUT.CROP.ENABLED = True
    with pytest.raises(ValueError, match=r"INPUT\.CROP\.ENABLED"):
        weak_augmentations(cfg)


def test_erased_patches_are_filled_in_a_copy_and_nothing_else_changes():
    patches = np.array([[2, 3, 10, 8], [0, 0, 0, 5], [70, 50, 80, 60]])
    before = IMAGE.copy()
    found = EraseTransform(patches, 125).apply_image(IMAGE)
    expected = IMAGE.copy()
    expected[3:8, 2:10] = 125
    expected[50:60, 70:80] = 125
    assert np.array_equal(found, expected)
    assert np.array_equal(IMAGE, before)


def test_patches_are_one_to_four_inside_the_image_and_of_its_shape():
    image = np.zeros((500, 1000, 3), np.uint8)
    np.random.seed(0)
    counts = []
    for _ in range(400):
        patches = RandomErase((1, 4), 0.0, 0.2, 125).get_transform(image).patches
        counts.append(len(patches))
        assert (patches >= 0).all() and (patches <= [1000, 500, 1000, 500]).all()
        width, height = (patches[:, 2:] - patches[:, :2]).T
        assert (np.abs(width / 2 - height) <= 1).all() and (width < 200).all()
    assert set(counts) == {1, 2, 3, 4}


def test_a_tiny_image_can_be_erased():
    np.random.seed(0)
    image = np.zeros((1, 1, 3), np.uint8)
    erased = RandomErase((4, 4), 0.0, 1.0, 9).get_transform(image).apply_image(image)
    assert erased.shape == (1, 1, 3)


def test_seeding_a_block_neither_feels_nor_disturbs_what_surrounds_it():
    np.random.seed(1)
    expected = np.random.rand(4)
    np.random.seed(1)
    first = np.random.rand(2)
    with seeded_numpy(7):
        inside = np.random.rand(3)
    second = np.random.rand(2)
    assert np.array_equal(np.concatenate([first, second]), expected)
    with seeded_numpy(7):
        assert np.array_equal(np.random.rand(3), inside)


def test_a_block_inside_another_leaves_its_draws_alone():
    expected = np.random.RandomState(7).rand(4)
    with seeded_numpy(7):
        first = np.random.rand(2)
        with seeded_numpy(8):
            inside = np.random.rand(3)
            with seeded_numpy(9):
                innermost = np.random.rand()
            after = np.random.rand()
        second = np.random.rand(2)
    assert np.array_equal(np.concatenate([first, second]), expected)
    assert np.array_equal([*inside, after], np.random.RandomState(8).rand(4))
    assert innermost == np.random.RandomState(9).rand()


def test_the_surrounding_state_is_restored_after_an_error():
    np.random.seed(1)
    expected = np.random.rand()
    np.random.seed(1)
    with pytest.raises(KeyError), seeded_numpy(2**32 - 1):
        raise KeyError
    with pytest.raises(ValueError, match="Seed"), seeded_numpy(-1):
        pass
    assert np.random.rand() == expected


def short_sides(augmentations, seeds):
    sides = []
    for seed in seeds:
        with seeded_sample(seed):
            aug_input = T.AugInput(IMAGE)
            T.AugmentationList(augmentations)(aug_input)
        sides.append(min(aug_input.image.shape[:2]))
    return sides


def test_a_scale_per_step_is_shared_by_the_step_and_differs_between_steps_and_views(cfg):
    cfg.INPUT.AUG.SCALE_PER_STEP = True
    one_step = [join_seeds(7, own) for own in range(20)]
    many_steps = [join_seeds(step, 3) for step in range(20)]
    sides = {}
    for name, build in (("weak", weak_augmentations), ("strong", strong_augmentations)):
        assert len(set(short_sides(build(cfg), one_step))) == 1
        sides[name] = short_sides(build(cfg), many_steps)
        assert len(set(sides[name])) > 10
    assert sides["weak"] != sides["strong"]
    cfg.INPUT.AUG.SCALE_PER_STEP = False
    assert len(set(short_sides(weak_augmentations(cfg), one_step))) > 10


def test_what_is_not_the_scale_is_still_drawn_for_each_image(cfg):
    cfg.INPUT.AUG.SCALE_PER_STEP = True
    seen = set()
    for own in range(20):
        with seeded_sample(join_seeds(7, own)):
            transforms = T.AugmentationList(weak_augmentations(cfg))(T.AugInput(IMAGE))
        seen.add(type(transforms.transforms[1]).__name__)
    assert seen == {"FastFlip", "NoOpTransform"}
