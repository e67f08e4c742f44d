"""The pieces of STAC's augmentation that Soft Teacher's recipe has not."""

import numpy as np
import pytest
from detectron2.data import transforms as T

from soft_teacher.data.augmentation import labeled_augmentations, strong_augmentations
from soft_teacher.data.box_geometry import BoxGeometryTransform, RandomBoxGeometry
from soft_teacher.data.geometry import AffineTransform, RandomGeometry, translation
from soft_teacher.data.randomness import seeded_numpy
from soft_teacher.data.rendering import ShapeInput, render

IMAGE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
BOXES = np.array([[10.0, 5.0, 30.0, 45.0], [40.0, 20.0, 70.0, 30.0]])


@pytest.fixture
def stac(cfg):
    cfg.INPUT.AUG.BOX_GEOMETRY = True
    cfg.INPUT.AUG.LABELED_COLOR = False
    cfg.SOFT_TEACHER.PSEUDO_LABELS.FILES = ("some.json",)
    return cfg


def drawn(augmentations, seed, boxes=BOXES):
    with seeded_numpy(seed):
        return T.AugmentationList(augmentations)(ShapeInput(IMAGE.shape, boxes))


def test_what_is_in_the_box_moves_and_the_rest_stays():
    transform = BoxGeometryTransform((10, 5, 30, 45), AffineTransform(translation(3, 0), 125))
    moved = transform.apply_image(IMAGE)
    expected = IMAGE.copy()
    expected[5:45, 13:30] = IMAGE[5:45, 10:27]
    expected[5:45, 10:13] = 125
    np.testing.assert_array_equal(moved, expected)
    np.testing.assert_array_equal(transform.apply_coords(BOXES), BOXES)


def test_half_of_the_strong_views_have_their_geometry_inside_one_box(stac):
    inside, everywhere, chosen = 0, 0, set()
    for seed in range(200):
        transforms = drawn(strong_augmentations(stac), seed).transforms
        in_box = [x for x in transforms if isinstance(x, BoxGeometryTransform)]
        everywhere += sum(isinstance(x, AffineTransform) for x in transforms)
        inside += len(in_box)
        if in_box:
            # Resized and flipped, but not changed by colors, which may come first.
            moved = T.TransformList(transforms[:2]).apply_box(BOXES)
            distance = np.abs(moved - np.array(in_box[0].box)).max(axis=1)
            assert distance.min() <= 0.5
            chosen.add(int(distance.argmin()))
    assert inside + everywhere == 200
    assert 70 < inside < 130
    assert chosen == {0, 1}


def test_ranges_in_a_box_are_a_half_and_a_third(stac):
    stac.INPUT.AUG.MAX_TRANSLATE, stac.INPUT.AUG.MAX_SHEAR = 0.0, 0.0
    angles = {AffineTransform: [], BoxGeometryTransform: []}
    for seed in range(200):
        for x in drawn(strong_augmentations(stac), seed).transforms:
            if type(x) in angles:
                matrix = getattr(x, "inner", x).matrix
                angles[type(x)].append(np.degrees(np.arctan2(matrix[1, 0], matrix[0, 0])))
    assert 25 < np.abs(angles[AffineTransform]).max() <= 30
    assert 8 < np.abs(angles[BoxGeometryTransform]).max() <= 10


def test_an_image_without_a_visible_box_is_left_alone():
    geometry = RandomBoxGeometry(RandomGeometry(0.1, 0, 0, 125))
    for boxes in (np.zeros((0, 4)), np.array([[200.0, 0.0, 220.0, 9.0]])):
        transforms = drawn([geometry], 0, boxes)
        np.testing.assert_array_equal(render(IMAGE, transforms), IMAGE)


def test_labeled_views_can_keep_their_colors(stac):
    for seed in range(20):
        steps = drawn(labeled_augmentations(stac), seed).transforms
        assert len(steps) == 2 and not any(isinstance(x, T.ColorTransform) for x in steps)


def test_boxes_must_be_known_beforehand(stac):
    stac.SOFT_TEACHER.PSEUDO_LABELS.FILES = ()
    with pytest.raises(ValueError, match="BOX_GEOMETRY needs boxes that are known before"):
        strong_augmentations(stac)
