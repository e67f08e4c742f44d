"""Pictures of detections."""

import numpy as np
import pytest
from pycocotools import mask as mask_util

from soft_teacher.analysis import detection_pictures
from soft_teacher.analysis.detection_pictures import LARGEST_SIDE, as_photo, draw_detections

NAMES = {7: "cat", 3: "a $b$ <c>"}


def entry(category, box, mask=None):
    found = {"image_id": 1, "category_id": category, "bbox": box, "score": 0.876}
    if mask is not None:
        found["segmentation"] = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return found


def test_boxes_and_captions_are_drawn_where_the_objects_are_at_any_scale(monkeypatch):
    calls = []
    draw = detection_pictures.draw_boxes
    monkeypatch.setattr(
        detection_pictures, "draw_boxes", lambda *a, **k: calls.append((a, k)) or draw(*a, **k)
    )
    # Of an image of 1000 x 2000, half as large.
    photo = np.full((500, 1000, 3), 90, np.uint8)
    entries = [entry(3, [200, 100, 400, 600]), entry(7, [1200, 200, 300, 300])]
    picture = draw_detections(photo, (1000, 2000), entries, NAMES)
    assert picture.shape == photo.shape
    (arguments, _), *_ = calls
    assert arguments[1].tolist() == [[100, 50, 300, 350], [600, 100, 750, 250]]
    assert arguments[2] == ["a $b$ <c> 88%", "cat 88%"]
    drawn = np.abs(picture.astype(int) - 90).max(axis=2) > 30
    # The left edge of the first box, the upper one of the second, and nothing inside of them.
    assert drawn[150:300, 99:102].any(axis=1).all() and drawn[98:103, 650:740].any(axis=0).all()
    assert not drawn[200:300, 150:250].any() and not drawn[:, 850:].any()


def test_each_class_has_its_color():
    photo = np.zeros((300, 300, 3), np.uint8)
    edges = [
        draw_detections(photo, (300, 300), [entry(k, [50, 50, 200, 200])], NAMES)[150, 50]
        for k in NAMES
    ]
    assert np.abs(edges[0].astype(int) - edges[1]).max() > 60


def test_masks_are_drawn_at_the_scale_of_the_photo():
    mask = np.zeros((100, 200), bool)
    mask[40:60, 20:40] = True
    photo = np.zeros((400, 800, 3), np.uint8)
    picture = draw_detections(photo, (100, 200), [entry(7, [0, 0, 200, 100], mask)], NAMES)
    filled = picture.max(axis=2) > 40
    assert filled[170:230, 90:150].all() and not filled[300:380, 300:700].any()


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((60, 80), (360, 480)),
        ((700, 900), (700, 900)),
        ((3200, 1600), (LARGEST_SIDE, LARGEST_SIDE // 2)),
        ((1, 4000), (1, LARGEST_SIDE)),
    ],
)
def test_a_photo_fits_a_screen(size, expected):
    image = np.full((*size, 3), 77, np.uint8)
    photo = as_photo(image)
    assert photo.shape == (*expected, 3)
    assert (photo == 77).all()


@pytest.mark.parametrize("size", [(1, 1), (600, 2), (2, 600)])
def test_images_of_odd_shapes_are_drawn_too(size):
    photo = as_photo(np.zeros((*size, 3), np.uint8))
    found = entry(7, [0, 0, size[1], size[0]], np.ones(size))
    assert draw_detections(photo, size, [found], NAMES).shape == photo.shape
    assert draw_detections(photo, size, [], NAMES).shape == photo.shape
