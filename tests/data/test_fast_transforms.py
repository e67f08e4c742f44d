import numpy as np
import pytest
from detectron2.data import transforms as T
from fvcore.transforms.transform import HFlipTransform, VFlipTransform
from PIL import Image

from soft_teacher.data.fast_transforms import FastFlip, FastResize, Redrawn, fast


def photo(height, width, channels=3):
    """A smooth image with some noise, as photographs are."""
    random = np.random.default_rng(0)
    shape = (height // 8 + 1, width // 8 + 1, channels)
    blocks = random.integers(0, 256, shape).repeat(8, 0).repeat(8, 1)[:height, :width]
    return (0.8 * blocks + random.uniform(0, 50, blocks.shape)).astype(np.uint8)


@pytest.mark.parametrize(
    "size", [(60, 80), (97, 131), (61, 150), (150, 81), (59, 81), (30, 40), (1, 1), (90, 40)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_resized_images_are_those_of_detectron2_to_two_gray_levels(size, channels):
    image = photo(60, 80, channels)
    found = FastResize(60, 80, *size).apply_image(image)
    expected = T.ResizeTransform(60, 80, *size).apply_image(image)
    assert found.shape == expected.shape and found.dtype == np.uint8
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 2 and difference.mean() < 0.4


@pytest.mark.parametrize("scale", [0.1, 0.25, 0.6, 0.9])
def test_a_shrunken_image_is_as_smooth_as_in_detectron2s_inference(scale):
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    sizes = (300, 400, round(300 * scale), round(400 * scale))
    found = FastResize(*sizes).apply_image(image).astype(int)
    expected = T.ResizeTransform(*sizes).apply_image(image)
    assert np.abs(found - expected).max() <= 2
    assert np.abs(found - expected).mean() < 0.1


def test_what_is_no_bilinear_resize_of_bytes_is_done_by_detectron2():
    mask = np.random.default_rng(0).integers(0, 3, (20, 30), dtype=np.uint8)
    stock, fast = T.ResizeTransform(20, 30, 41, 62), FastResize(20, 30, 41, 62)
    assert np.array_equal(fast.apply_segmentation(mask), stock.apply_segmentation(mask))
    numbers = np.random.default_rng(0).random((20, 30, 3), dtype=np.float32)
    assert np.array_equal(fast.apply_image(numbers), stock.apply_image(numbers))
    nearest = FastResize(20, 30, 41, 62, Image.NEAREST)
    assert np.array_equal(nearest.apply_image(mask), stock.apply_segmentation(mask))


def test_coordinates_move_as_in_detectron2():
    points = np.random.default_rng(0).uniform(0, 60, (9, 2))
    stock, fast = T.ResizeTransform(60, 80, 91, 33), FastResize(60, 80, 91, 33)
    assert np.array_equal(fast.apply_coords(points.copy()), stock.apply_coords(points.copy()))
    stock, fast = HFlipTransform(80), FastFlip(80)
    assert np.array_equal(fast.apply_coords(points.copy()), stock.apply_coords(points.copy()))


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 1), (6, 7, 3), (1, 1, 3)])
def test_a_flipped_image_is_mirrored_and_in_memory_order(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = FastFlip(shape[1]).apply_image(image)
    assert np.array_equal(found, image[:, ::-1]) and found.flags.c_contiguous


def test_draws_are_those_of_the_augmentation_inside():
    image = photo(60, 80)
    inside = T.ResizeShortestEdge((40, 90), 120, "range")
    for seed in range(5):
        np.random.seed(seed)
        drawn = inside.get_transform(image)
        np.random.seed(seed)
        quick = Redrawn(inside, fast).get_transform(image)
        assert isinstance(quick, FastResize)
        assert (quick.h, quick.w, quick.new_h, quick.new_w) == (60, 80, drawn.new_h, drawn.new_w)
    flip = Redrawn(T.RandomFlip(1.0), fast).get_transform(image)
    assert isinstance(flip, FastFlip) and flip.width == 80
    flip = T.RandomFlip(1.0, horizontal=False, vertical=True)
    vertical = Redrawn(flip, fast).get_transform(image)
    assert isinstance(vertical, VFlipTransform)
