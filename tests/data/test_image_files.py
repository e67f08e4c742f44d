"""Every kind of image file that people have: read as it is meant, or refused by its name."""

import io
import struct

import numpy as np
import pytest
from detectron2.data import detection_utils
from PIL import ExifTags, Image

from soft_teacher.data.image_files import ImageError, read_image, read_image_size

RED = (250, 10, 20)


def save(path, image, **options):
    image.save(path, **options)
    return str(path)


def turned(tmp_path, orientation, name="turned.png"):
    """A red 6 x 4 image whose first pixel is white, and which an EXIF tag turns."""
    image = Image.new("RGB", (6, 4), RED)
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return save(tmp_path / name, image, exif=exif)


@pytest.mark.parametrize("image_format", ["RGB", "BGR", "L"])
def test_ordinary_images_are_read_as_detectron2_reads_them(tmp_path, image_format):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    path = save(tmp_path / "a.jpg", Image.fromarray(pixels))
    expected = detection_utils.read_image(path, image_format)
    np.testing.assert_array_equal(read_image(path, image_format), expected)
    assert read_image_size(path) == (30, 40)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "P", "RGBA", "CMYK", "YCbCr"])
def test_other_modes_become_color_images(tmp_path, mode):
    suffix = "jpg" if mode in ("CMYK", "YCbCr") else "png"
    color = (255, 255, 255) if mode in ("L", "LA", "1") else RED
    image = Image.new("RGB", (20, 10), color)
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    pixels = read_image(save(tmp_path / f"a.{suffix}", image), "RGB")
    assert pixels.shape == (10, 20, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - np.array(color)).max() <= 12


def test_a_palette_with_transparency_and_an_animation_are_read(tmp_path):
    frames = [Image.new("RGB", (8, 8), c).convert("P") for c in (RED, (0, 0, 255))]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:], transparency=0)
    assert read_image(str(path), "RGB").shape == (8, 8, 3)


def test_sixteen_bits_keep_their_upper_eight(tmp_path):
    values = np.array([[0, 255, 256, 65535], [4660, 32768, 1, 65280]], np.uint16)
    path = save(tmp_path / "a.png", Image.fromarray(values))
    np.testing.assert_array_equal(read_image(path, "RGB")[:, :, 0], values // 256)
    tiff = save(tmp_path / "a.tif", Image.fromarray(values.astype(np.int32)))
    np.testing.assert_array_equal(read_image(tiff, "BGR")[:, :, 2], values // 256)


def test_floating_point_pixels_are_refused(tmp_path):
    path = save(tmp_path / "a.tif", Image.fromarray(np.ones((3, 4), np.float32)))
    with pytest.raises(ImageError, match=r"a\.tif.*floating-point"):
        read_image(path, "RGB")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_tag_turns_the_image_upright_as_detectron2_does(tmp_path, orientation):
    path = turned(tmp_path, orientation)
    image = read_image(path, "RGB")
    np.testing.assert_array_equal(image, detection_utils.read_image(path, "RGB"))
    np.testing.assert_array_equal(image, read_image(path, "RGB", image.shape[:2]))
    assert read_image_size(path) == image.shape[:2]
    assert image.shape[:2] == ((6, 4) if orientation > 4 else (4, 6))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_drawn_without_the_exif_tag_keep_the_image_that_they_were_drawn_on(
    tmp_path, orientation
):
    image = read_image(turned(tmp_path, orientation), "RGB", stated_size=(4, 6))
    assert image.shape == (4, 6, 3)
    assert image[0, 0].tolist() == [255, 255, 255]


def test_a_stated_size_that_fits_neither_way_leaves_the_image_upright(tmp_path):
    assert read_image(turned(tmp_path, 6), "RGB", stated_size=(40, 60)).shape == (6, 4, 3)


def test_one_pixel_and_twelve_thousand_are_read(tmp_path):
    for width, height in ((1, 1), (12000, 2)):
        path = save(tmp_path / f"{width}.png", Image.new("RGB", (width, height), RED))
        assert read_image(path, "RGB").shape == (height, width, 3)


def test_names_may_be_long_and_of_any_script(tmp_path):
    for name in ("Straße 图片 😀 ñ.png", "x" * 250 + ".png"):
        path = save(tmp_path / name, Image.new("RGB", (5, 4), RED))
        assert read_image(path, "RGB").shape == (4, 5, 3)
    with pytest.raises(ImageError, match="File name too long"):
        read_image(str(tmp_path / ("x" * 300 + ".png")), "RGB")


@pytest.mark.parametrize("content", [None, b"", b"hello", b"\x89PNG\r\n\x1a\n and no more"])
def test_what_is_no_image_is_refused_by_name(tmp_path, content):
    path = tmp_path / "bad.jpg"
    if content is not None:
        path.write_bytes(content)
    for read in (lambda: read_image(str(path), "RGB"), lambda: read_image_size(str(path))):
        with pytest.raises(ImageError, match=r"Cannot read the image .*bad\.jpg: \w"):
            read()


def test_a_folder_in_place_of_a_file_is_refused_by_name(tmp_path):
    with pytest.raises(ImageError, match="directory"):
        read_image(str(tmp_path), "RGB")


def test_an_image_beyond_pillows_limit_is_refused_before_it_is_decoded(tmp_path):
    # A PNG whose head claims 60,000 x 60,000 pixels.
    path = tmp_path / "bomb.png"
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "png")
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack(">II", 60000, 60000)
    path.write_bytes(bytes(content))
    with pytest.raises(ImageError, match=r"bomb\.png"):
        read_image(str(path), "RGB")


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif", "tif", "webp"])
def test_damaged_files_are_read_or_refused_and_nothing_else(tmp_path, suffix):
    random = np.random.default_rng(5)
    pixels = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
    whole = tmp_path / f"whole.{suffix}"
    Image.fromarray(pixels).save(whole)
    content = np.frombuffer(whole.read_bytes(), np.uint8)
    refused = 0
    for _ in range(120):
        damaged = content[: random.integers(1, len(content) + 1)].copy()
        places = random.integers(0, len(damaged), random.integers(0, 8))
        damaged[places] = random.integers(0, 256, len(places))
        path = tmp_path / f"damaged.{suffix}"
        path.write_bytes(damaged.tobytes())
        try:
            image = read_image(str(path), "RGB")
            assert image.ndim == 3 and image.dtype == np.uint8
        except ImageError as error:
            refused += 1
            assert f"damaged.{suffix}" in str(error)
    assert refused > 10
