"""OpenCV decodes a JPEG file only where it gives what Pillow gives."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from soft_teacher.data.whole_jpeg import REDUCTIONS, decode_whole_jpeg

SIZE = (48, 64)
BASELINE = [{}, {"subsampling": 0}, {"optimize": True}, {"restart_marker_blocks": 2}]


def smooth_pixels():
    noise = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(noise, SIZE[::-1], interpolation=cv2.INTER_CUBIC)


def jpeg(**options):
    file = io.BytesIO()
    Image.fromarray(smooth_pixels()).save(file, "jpeg", **options)
    return file.getvalue()


def by_pillow(content):
    """Pixels, or None if Pillow refuses the file."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            image.load()
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError):
        return None


@pytest.mark.parametrize("options", [*BASELINE, {"keep_rgb": True}, {"quality": 20}])
def test_a_whole_file_has_the_pixels_of_pillow(options):
    content = jpeg(**options)
    expected = by_pillow(content)
    assert np.array_equal(decode_whole_jpeg(content, SIZE, "RGB"), expected)
    assert np.array_equal(decode_whole_jpeg(content, SIZE, "BGR"), expected[:, :, ::-1])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_smaller_image_is_that_of_pillows_draft_mode(reduction):
    content = jpeg()
    small = (SIZE[0] // reduction, SIZE[1] // reduction)
    with Image.open(io.BytesIO(content)) as image:
        image.draft(None, small[::-1])
        expected = np.asarray(image)
    found = decode_whole_jpeg(content, SIZE, "RGB", reduction)
    assert found.shape == (*small, 3) and np.array_equal(found, expected)


def test_what_is_not_surely_whole_is_left_to_others():
    content = jpeg()
    middle = len(content) - 200
    others = {
        "truncated": content[:-1],
        "half": content[: len(content) // 2],
        "head": content[:30],
        "start": content[:2],
        "more behind it": content + b"0",
        "two images": content + content,
        "foreign marker": content[:middle] + b"\xff\x12" + content[middle:],
        "several scans": jpeg(progressive=True),
        "damaged head": content[:2] + b"0" + content[3:],
    }
    for name, other in others.items():
        assert decode_whole_jpeg(other, SIZE, "RGB") is None, name


def test_another_size_than_that_of_the_head_is_not_taken():
    assert decode_whole_jpeg(jpeg(), (SIZE[0], SIZE[1] + 1), "RGB") is None


def damaged(content, random):
    """Bytes exchanged, lost or put in between, the end of the file being there."""
    start, end = np.sort(random.integers(2, len(content) - 2, 2))
    noise = random.integers(0, 256, random.integers(1, 60)).astype(np.uint8).tobytes()
    kind = random.integers(3)
    if kind == 0:
        changed = bytearray(content)
        for place in random.integers(2, len(content) - 2, random.integers(1, 8)):
            changed[place] = random.integers(256)
        return bytes(changed)
    return content[:start] + (noise + content[start:] if kind == 1 else content[end:])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", BASELINE)
def test_a_damaged_file_is_decoded_as_pillow_decodes_it_or_left_to_pillow(options):
    random = np.random.default_rng(3)
    content, decoded = jpeg(**options), 0
    for _ in range(400):
        other = damaged(content, random)
        found = decode_whole_jpeg(other, SIZE, "RGB")
        if found is not None:
            decoded += 1
            assert np.array_equal(found, by_pillow(other))
    assert decoded > 50
