"""Every kind of image file that people have: read as it is meant, or refused by its name."""

import struct
import zlib
from unittest.mock import Mock

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import detection_utils
from PIL import ExifTags, Image, ImageFile

from soft_teacher import add_soft_teacher_config
from soft_teacher.data import ImageMapper, LabeledMapper, TwoViewMapper, image_files
from soft_teacher.data.image_files import (
    MAX_PIXELS,
    ImageError,
    OpenedImage,
    read_image,
    read_image_size,
)

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


# Heads of files that claim 60,000 x 50,000 pixels and hold next to none, made by hand: the
# formats' own layouts. (WebP cannot claim more than 16,383 pixels a side.)
BOMBS = {
    "bomb.png": b"\x89PNG\r\n\x1a\n"
    + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 60000, 50000, 8, 2, 0, 0, 0)
    + struct.pack(">I", zlib.crc32(struct.pack(">4sIIBBBBB", b"IHDR", 60000, 50000, 8, 2, 0, 0, 0)))
    + struct.pack(">I4s", 8, b"IDAT"),
    "bomb.jpg": b"\xff\xd8\xff\xc0"
    + struct.pack(">HBHHB", 17, 8, 50000, 60000, 3)
    + bytes((1, 17, 0, 2, 17, 0, 3, 17, 0))
    + b"\xff\xda\x00\x0c\x03\x01\x00\x02\x00\x03\x00\x00\x3f\x00",
    "bomb.bmp": b"BM"
    + struct.pack("<IIIIiiHH", 54, 0, 54, 40, 60000, 50000, 1, 24)
    + bytes(24),
    "bomb.gif": b"GIF89a"
    + struct.pack("<HHBBB", 60000, 50000, 0x80, 0, 0)
    + bytes(6)
    + struct.pack("<cHHHHBB", b",", 0, 0, 60000, 50000, 0, 8),
    "bomb.ppm": b"P6 60000 50000 255\n",
    "bomb.tif": b"II*\0"
    + struct.pack("<IH", 8, 7)
    + b"".join(
        struct.pack("<HHII", tag, 4, 1, value)
        for tag, value in {
            256: 60000, 257: 50000, 258: 8, 259: 1, 262: 1, 273: 8, 279: 8,
        }.items()
    )
    + bytes(4),
}  # fmt: skip
CLAIMED = 60000 * 50000


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("max_pixels", [MAX_PIXELS, CLAIMED - 1])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path, monkeypatch, name, max_pixels
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    monkeypatch.setattr(image_files, "decode_whole_jpeg", lambda *_: pytest.fail("decoded"))
    path = tmp_path / name
    path.write_bytes(BOMBS[name])
    with pytest.raises(ImageError) as error:
        read_image(str(path), "RGB", max_pixels=max_pixels)
    message = str(error.value)
    assert name in message and "INPUT.MAX_PIXELS" in message
    if max_pixels == CLAIMED - 1:
        assert f"60000 x 50000 pixels, more than INPUT.MAX_PIXELS ({max_pixels})" in message


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif", "tif", "webp", "ppm", "jp2"])
def test_the_limit_is_the_exact_number_of_pixels_in_every_format(tmp_path, suffix):
    path = save(tmp_path / f"a.{suffix}", Image.new("RGB", (40, 30), RED))
    assert read_image(path, "RGB", max_pixels=1200).shape == (30, 40, 3)
    with pytest.raises(ImageError, match=r"40 x 30 pixels, more than INPUT\.MAX_PIXELS \(1199\)"):
        read_image(path, "RGB", max_pixels=1199)
    assert read_image_size(path) == (30, 40)


def test_the_limit_alone_decides_and_not_pillows_smaller_one(tmp_path, monkeypatch, recwarn):
    path = save(tmp_path / "a.png", Image.new("RGB", (40, 30), RED))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(path, "RGB", max_pixels=1200).shape == (30, 40, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image_size(path) == (30, 40)
    assert not recwarn.list
    assert MAX_PIXELS >= 12_000 * 12_000


def test_the_limit_of_the_config_reaches_every_mapper(cfg, coco):
    cfg.INPUT.MAX_PIXELS = 64 * 48 - 1
    record = {"file_name": str(coco / "images/0.png"), "image_id": 1, "annotations": []}
    for mapper in (LabeledMapper(cfg), TwoViewMapper(cfg)):
        with pytest.raises(ImageError, match=r"0\.png.*INPUT\.MAX_PIXELS \(3071\)"):
            mapper(record, 0)
    with pytest.raises(ImageError, match=r"0\.png.*INPUT\.MAX_PIXELS \(3071\)"):
        ImageMapper(cfg)(record)


def test_the_default_of_the_config_is_that_of_the_reader():
    cfg = get_cfg()
    add_soft_teacher_config(cfg)
    assert cfg.INPUT.MAX_PIXELS == MAX_PIXELS


def test_a_format_for_which_pillow_starts_another_program_is_not_read(tmp_path):
    path = save(tmp_path / "a.eps", Image.new("RGB", (4, 3), RED))
    for read in (lambda: read_image(path, "RGB"), lambda: read_image_size(path)):
        with pytest.raises(ImageError, match=r"a\.eps: it is in none of the formats JPEG, PNG"):
            read()


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


def test_whatever_kind_of_error_pillow_meets_the_file_is_named(tmp_path, monkeypatch):
    """It raised TypeError and MemoryError, each for a few of 71,000 damaged files."""
    path = save(tmp_path / "a.png", Image.new("RGB", (4, 3), RED))
    for error in (TypeError, MemoryError):
        for owner, name, read in (
            (Image, "open", read_image_size),
            (ImageFile.ImageFile, "load", lambda path: read_image(path, "RGB")),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, Mock(side_effect=error("tag")))
                with pytest.raises(ImageError, match=rf"a\.png: {error.__name__}: tag"):
                    read(path)
    # What our own code raises is no damage.
    monkeypatch.setattr(image_files, "_to_array", Mock(side_effect=TypeError("ours")))
    with pytest.raises(TypeError, match="ours"):
        read_image(path, "RGB")


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("reduction", [1, 2, 8])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_files_are_turned_upright_whoever_decodes_them_and_at_any_size(
    tmp_path, options, reduction, orientation
):
    blocks = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = Image.fromarray(blocks.repeat(16, 0).repeat(16, 1))
    path = save(tmp_path / "turned.jpg", image, exif=exif, quality=95, subsampling=0, **options)
    whole = detection_utils.read_image(path, "BGR")
    with OpenedImage(path, "BGR") as file:
        assert file.size == whole.shape[:2] == read_image_size(path)
        found = file.decode(reduction)
    # Blocks of one color stay so in libjpeg's smaller images.
    assert np.array_equal(found.shape[:2], np.array(whole.shape[:2]) // reduction)
    middle = reduction // 2
    expected = whole[middle::reduction, middle::reduction].astype(int)
    assert np.abs(found - expected).max() <= (0 if reduction == 1 else 6)


@pytest.mark.parametrize("suffix", ["tif", "png", "webp"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_the_size_that_is_known_before_decoding_is_that_of_the_pixels(
    tmp_path, suffix, orientation
):
    path = turned(tmp_path, orientation, f"turned.{suffix}")
    with OpenedImage(path, "RGB") as file:
        size = file.size
        assert file.decode(2).shape[:2] == size
    assert read_image_size(path) == size == ((4, 6) if orientation == 3 else (6, 4))


def test_a_scan_that_breaks_off_at_a_foreign_marker_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    path = save(tmp_path / "broken.jpg", Image.fromarray(noise))
    content = (tmp_path / "broken.jpg").read_bytes()
    middle = len(content) // 2
    (tmp_path / "broken.jpg").write_bytes(content[:middle] + b"\xff\x12" + content[middle:])
    with pytest.raises(ImageError, match=r"broken\.jpg: broken data stream"):
        read_image(path, "RGB")
