import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from soft_teacher.data import color
from soft_teacher.data.color import COLOR_OPERATIONS, RandomColor, color_transform

LEVELS = range(1, 10)
FACTORS = [0.28, 0.46, 0.64, 0.82, 1.00, 1.18, 1.36, 1.54, 1.72]


@pytest.fixture(scope="module")
def image():
    """A dim RGB image whose channels differ in range."""
    random = np.random.default_rng(0)
    return random.integers((20, 40, 60), (120, 250, 180), (30, 40, 3), dtype=np.uint8)


def apply(name, level, image, image_format="RGB"):
    return color_transform(name, level, image_format).apply_image(image)


def blend(start, image, factor):
    return np.clip(start + factor * (image.astype(float) - start), 0, 255)


def luminance(image):
    return image.astype(float) @ [0.299, 0.587, 0.114]


def assert_close(found, expected):
    assert np.abs(found.astype(float) - expected).max() <= 1.0


PILLOW = {
    "autocontrast": lambda image, level: ImageOps.autocontrast(image),
    "equalize": lambda image, level: ImageOps.equalize(image),
    "solarize": lambda image, level: ImageOps.solarize(image, int(25.6 * level)),
    "posterize": lambda image, level: ImageOps.posterize(image, 4 - int(0.4 * level)),
    "brightness": lambda image, level: ImageEnhance.Brightness(image).enhance(FACTORS[level - 1]),
    "contrast": lambda image, level: ImageEnhance.Contrast(image).enhance(FACTORS[level - 1]),
    "color": lambda image, level: ImageEnhance.Color(image).enhance(FACTORS[level - 1]),
    "sharpness": lambda image, level: ImageEnhance.Sharpness(image).enhance(FACTORS[level - 1]),
}
BY_WHOLE_NUMBERS = {"equalize", "solarize", "posterize"}


def smooth_image(height, width):
    """Noise on a slope, all values in use."""
    random = np.random.default_rng(1)
    slope = np.linspace(0, 255, width)[None, :, None] * [1.0, 0.8, 0.5]
    image = slope + random.normal(0, 20, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", PILLOW)
@pytest.mark.parametrize("level", LEVELS)
def test_operations_are_those_of_pillow_to_one_gray_level(image, name, level):
    flat = np.full((5, 6, 3), (10, 10, 200), np.uint8)
    for before in (image, smooth_image(60, 90), smooth_image(1, 1), smooth_image(2, 300), flat):
        expected = np.asarray(PILLOW[name](Image.fromarray(before), level)).astype(int)
        difference = np.abs(apply(name, level, before) - expected)
        assert difference.max() <= (0 if name in BY_WHOLE_NUMBERS else 1)
        assert difference.mean() <= 0.5


def test_operations_leave_the_image_they_are_given_unchanged(image):
    before = image.copy()
    for name in COLOR_OPERATIONS:
        apply(name, 9, image)
    assert np.array_equal(image, before)


def test_identity_changes_nothing(image):
    assert np.array_equal(apply("identity", 5, image), image)


@pytest.mark.parametrize("level", LEVELS)
def test_solarize_inverts_pixels_from_the_threshold_up(image, level):
    threshold = [25, 51, 76, 102, 128, 153, 179, 204, 230][level - 1]
    expected = np.where(image >= threshold, 255 - image, image)
    assert np.array_equal(apply("solarize", level, image), expected)


@pytest.mark.parametrize("level", LEVELS)
def test_posterize_keeps_the_official_number_of_bits(image, level):
    bits = [4, 4, 3, 3, 2, 2, 2, 1, 1][level - 1]
    assert np.array_equal(apply("posterize", level, image), image >> (8 - bits) << (8 - bits))


@pytest.mark.parametrize("level", LEVELS)
def test_brightness_contrast_and_color_blend_by_the_official_factors(image, level):
    factor = FACTORS[level - 1]
    gray = luminance(image)
    assert_close(apply("brightness", level, image), blend(0.0, image, factor))
    assert_close(apply("contrast", level, image), blend(round(gray.mean()), image, factor))
    # The gray image is rounded before the blend, so that the errors add up.
    found = apply("color", level, image).astype(float)
    assert np.abs(found - blend(gray[:, :, None], image, factor)).max() <= 2.0


@pytest.mark.parametrize("level", LEVELS)
def test_sharpness_leaves_flat_areas_and_scales_the_contrast_of_a_dot(level):
    flat = np.full((9, 9, 3), 100, np.uint8)
    assert np.array_equal(apply("sharpness", level, flat), flat)
    dot = flat.copy()
    dot[4, 4] = 126
    # Pillow's smoothing weighs the center 5, its eight neighbors 1.
    smooth = 100 + 26 * 5 / 13
    assert_close(apply("sharpness", level, dot)[4, 4], smooth + FACTORS[level - 1] * (126 - smooth))


def test_autocontrast_stretches_each_channel_to_the_full_range(image):
    low, high = image.min((0, 1)).astype(float), image.max((0, 1)).astype(float)
    assert_close(apply("autocontrast", 1, image), (image - low) * 255 / (high - low))


def test_equalize_keeps_the_order_of_values_and_spreads_them_evenly(image):
    # Many pixels, for Pillow works in whole steps of 1/255 of their number.
    image = np.tile(image, (10, 10, 1))
    found = apply("equalize", 1, image)
    for channel in range(3):
        before, after = image[..., channel].ravel(), found[..., channel].ravel().astype(int)
        assert (np.diff(after[np.argsort(before, kind="stable")]) >= 0).all()
        assert abs(after.mean() - 127.5) < 8


@pytest.mark.parametrize("name", COLOR_OPERATIONS)
def test_bgr_images_get_the_same_colors_as_rgb_images(image, name):
    for level in LEVELS:
        bgr = apply(name, level, image[:, :, ::-1], "BGR")
        assert np.array_equal(bgr[:, :, ::-1], apply(name, level, image))


def test_each_of_nine_operations_and_nine_levels_is_as_likely(image, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        color, "color_transform", lambda name, level, _: drawn.append((name, level))
    )
    np.random.seed(0)
    augmentation = RandomColor("RGB")
    for _ in range(8100):
        augmentation.get_transform(image)
    counts = {
        (name, level): drawn.count((name, level)) for name in COLOR_OPERATIONS for level in LEVELS
    }
    assert len(counts) == 81 and sum(counts.values()) == 8100
    assert all(60 < count < 140 for count in counts.values())


def test_coordinates_and_masks_stay_as_they_are(image):
    transform = color_transform("posterize", 9, "BGR")
    points = np.array([[1.5, 2.5]])
    assert np.array_equal(transform.apply_coords(points.copy()), points)
    assert np.array_equal(transform.apply_segmentation(image[..., 0]), image[..., 0])


def test_a_format_without_red_green_blue_is_refused_by_key():
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT"):
        RandomColor("L")
