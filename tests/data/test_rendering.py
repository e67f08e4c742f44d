import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, TransformList, VFlipTransform

from soft_teacher.data.augmentation import labeled_augmentations, strong_augmentations
from soft_teacher.data.color import COLOR_OPERATIONS, PixelwiseColor, color_transform
from soft_teacher.data.erase import EraseTransform
from soft_teacher.data.fast_transforms import FastFlip, FastResize
from soft_teacher.data.geometry import AffineTransform, rotation, shear, translation
from soft_teacher.data.randomness import seeded_sample
from soft_teacher.data.rendering import (
    ShapeInput,
    channels_first,
    largest_reduction,
    render,
    render_tensor,
)

HEIGHT, WIDTH = 60, 80
LARGER, SMALLER = (90, 120), (45, 60)


def smooth_image():
    """Without hard edges, so that interpolating twice costs little."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX)


def step_by_step(image, transforms):
    for step in transforms.transforms:
        image = step.apply_image(image)
    return image


def inner(image):
    """Away from the sides, where what comes from outside begins."""
    return image[5:-5, 5:-5].astype(int)


@pytest.mark.parametrize("size", [LARGER, SMALLER])
@pytest.mark.parametrize("matrix", [translation(3, 0), translation(0, -8)])
def test_shifts_after_resize_and_flip_are_the_steps_one_after_the_other(size, matrix):
    image = smooth_image()
    resize, flip = FastResize(HEIGHT, WIDTH, *size), FastFlip(size[1])
    transforms = TransformList([resize, flip, AffineTransform(matrix, 125)])
    found, expected = render(image, transforms), step_by_step(image, transforms)
    assert found.shape == (*size, 3)
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("matrix", [rotation(20, (60, 45)), shear(15, -10)])
@pytest.mark.parametrize("flip", [FastFlip(LARGER[1]), NoOpTransform()])
def test_turns_and_shears_of_an_enlarged_image_are_the_steps_but_for_their_blur(matrix, flip):
    image = smooth_image()
    resize = FastResize(HEIGHT, WIDTH, *LARGER)
    transforms = TransformList([resize, flip, AffineTransform(matrix, 125)])
    found, expected = render(image, transforms), step_by_step(image, transforms)
    assert found.shape == expected.shape
    inside = (matrix_mask(matrix) > 0)[5:-5, 5:-5]
    assert np.abs(inner(found) - inner(expected))[inside].max() <= 6
    assert np.abs(inner(found) - inner(expected))[inside].mean() < 1


def matrix_mask(matrix):
    """Where the moved image surely is."""
    frame = np.zeros(LARGER, np.uint8)
    frame[6:-6, 6:-6] = 255
    return cv2.erode(AffineTransform(matrix, 0).apply_image(frame), np.ones((5, 5)))


def test_a_turned_image_that_shrank_is_filtered_before_it_is_turned():
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    turn = AffineTransform(rotation(20, (30, 22)), 125)
    transforms = TransformList([FastResize(HEIGHT, WIDTH, *SMALLER), turn])
    assert np.array_equal(render(image, transforms), step_by_step(image, transforms))


def test_other_steps_keep_their_place():
    image = smooth_image()
    brighten = T.ColorTransform(lambda pixels: cv2.add(pixels, (90, 90, 90, 0)))
    turn = AffineTransform(rotation(20, (40, 30)), 0)
    erase = EraseTransform(np.array([[30, 20, 40, 30]]), 7)
    for order in ([brighten, turn, erase], [turn, brighten, erase], [erase, turn, brighten]):
        transforms = TransformList(order)
        assert np.array_equal(render(image, transforms), step_by_step(image, transforms))


@pytest.mark.parametrize("size", [LARGER, SMALLER])
@pytest.mark.parametrize("turn", [NoOpTransform(), AffineTransform(rotation(20, (60, 45)), 0)])
def test_colors_are_changed_where_there_are_fewer_pixels(size, turn):
    image, sizes = smooth_image(), []
    before = image.copy()

    def invert(pixels):
        sizes.append(pixels.shape[:2])
        return 255 - pixels

    steps = [FastResize(HEIGHT, WIDTH, *size), FastFlip(size[1]), PixelwiseColor(invert), turn]
    made = render(image, TransformList(steps))
    as_tensor = render_tensor(image, TransformList(steps)).numpy().transpose(1, 2, 0)
    assert sizes == [min((HEIGHT, WIDTH), size)] * 2
    expected = step_by_step(image, TransformList(steps))
    for found in (made, as_tensor):
        assert np.abs(inner(found) - inner(expected)).mean() <= 1
    assert np.array_equal(image, before)


def test_colors_of_neighbors_and_colors_behind_geometry_keep_their_place():
    image = smooth_image()
    resize = FastResize(HEIGHT, WIDTH, *LARGER)
    sharpen, posterize = (color_transform(x, 9, "BGR") for x in ("sharpness", "posterize"))
    shifted = AffineTransform(translation(7, 3), 125)
    for order in ([resize, sharpen], [resize, sharpen, posterize], [resize, shifted, posterize]):
        transforms = TransformList(order)
        assert np.array_equal(render(image, transforms), step_by_step(image, transforms))


@pytest.mark.parametrize("name", sorted(set(COLOR_OPERATIONS) - {"identity", "sharpness"}))
def test_each_color_before_the_resize_is_nearly_that_behind_it(name):
    image = smooth_image() // 2 + 40
    color, resize = color_transform(name, 3, "BGR"), FastResize(HEIGHT, WIDTH, *LARGER)
    assert type(color) is PixelwiseColor
    steps = TransformList([resize, color])
    expected = step_by_step(image, steps).astype(int)
    change = np.abs(resize.apply_image(image) - expected).mean()
    # A posterized image has steps of 32 levels, which the resize makes smooth.
    assert np.abs(render(image, steps) - expected).mean() <= min(4, 0.4 * change)


def test_erasing_alone_leaves_the_image_it_is_given_unchanged():
    image = smooth_image()
    before = image.copy()
    found = render(image, TransformList([EraseTransform(np.array([[3, 2, 9, 8]]), 7)]))
    assert (found[2:8, 3:9] == 7).all() and np.array_equal(image, before)


def test_the_shape_that_draws_see_is_that_of_the_image_and_no_pixel_is_needed(cfg):
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for augmentations in (labeled_augmentations(cfg), strong_augmentations(cfg)):
        for seed in range(20):
            with seeded_sample(seed):
                pixels = T.AugInput(image)
                expected = T.AugmentationList(augmentations)(pixels)
            with seeded_sample(seed):
                shape = ShapeInput(image.shape)
                found = T.AugmentationList(augmentations)(shape)
            assert shape.image.shape == pixels.image.shape
            names = [[type(step) for step in drawn.transforms] for drawn in (found, expected)]
            assert names[0] == names[1]
            points = np.array([[0.0, 0.0], [10.0, 3.0], [4.0, 50.0]])
            assert np.array_equal(
                found.apply_coords(points.copy()), expected.apply_coords(points.copy())
            )
            assert render(image, found).shape == pixels.image.shape


def test_a_view_of_the_image_in_reversed_channels_is_rendered_as_its_copy_and_kept():
    rgb = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    before = rgb.copy()
    transforms = TransformList([FastResize(HEIGHT, WIDTH, *LARGER), FastFlip(LARGER[1])])
    found = render(rgb[:, :, ::-1], transforms)
    assert np.array_equal(found, render(np.ascontiguousarray(rgb[:, :, ::-1]), transforms))
    assert np.array_equal(rgb, before)


@pytest.mark.parametrize("shape", [(5, 6, 3), (5, 6, 1), (1, 1, 3), (1, 9, 3), (9, 1, 1)])
def test_the_tensor_holds_the_image_channels_first(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    flipped = VFlipTransform(shape[0]).apply_image(image)
    for pixels in (image, flipped):
        found = channels_first(pixels)
        assert found.is_contiguous() and found.dtype == torch.uint8
        assert np.array_equal(found.numpy(), pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("size", [LARGER, SMALLER, (HEIGHT, WIDTH), (90, 40)])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_made_plane_by_plane_has_the_same_pixels_and_leaves_the_image(size, channels):
    image = smooth_image()[:, :, :channels].copy()
    before = image.copy()
    resize = FastResize(HEIGHT, WIDTH, *size)
    for flip in (FastFlip(size[1]), NoOpTransform()):
        found = render_tensor(image, TransformList([resize, flip]))
        expected = channels_first(render(image, TransformList([resize, flip])))
        assert found.is_contiguous() and torch.equal(found, expected)
        assert np.array_equal(image, before)


def test_a_view_to_which_more_is_done_is_the_rendered_one():
    image = smooth_image()
    erase = EraseTransform(np.array([[30, 20, 40, 30]]), 7)
    for steps in ([], [erase], [FastResize(HEIGHT, WIDTH, *LARGER), erase]):
        found = render_tensor(image, TransformList(steps))
        assert torch.equal(found, channels_first(render(image, TransformList(steps))))


@pytest.mark.parametrize(
    ("size", "views", "factor"),
    [
        ((2400, 3200), [(200, 266), (150, 200)], 8),
        ((2400, 3200), [(200, 266), (201, 268)], 4),
        ((2400, 3200), [(200, 266), (800, 1066)], 2),
        ((2400, 3200), [(200, 266), (801, 1068)], 1),
        # The longer side decides too, and sides must be divisible.
        ((2400, 3200), [(200, 300), (150, 200)], 4),
        ((2400, 3204), [(200, 266), (150, 200)], 4),
        ((2400, 3201), [(200, 266), (150, 200)], 1),
        ((480, 640), [(400, 533), (1000, 1333)], 1),
    ],
)
def test_an_image_is_decoded_as_small_as_its_larger_view_allows(size, views, factor):
    drawn = [TransformList([FastResize(*size, *view), FastFlip(view[1])]) for view in views]
    assert largest_reduction(size, drawn) == factor


def test_an_image_is_decoded_whole_if_a_view_is_not_resized_first():
    resize = FastResize(2400, 3200, 240, 320)
    for other in ([], [FastFlip(3200), resize], [NoOpTransform()]):
        views = [TransformList([resize]), TransformList(other)]
        assert largest_reduction((2400, 3200), views) == 1
