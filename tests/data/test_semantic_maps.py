"""Maps of semantic labels of labeled images: found, checked, and moved like the image."""

import re

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from fvcore.transforms.transform import TransformList
from PIL import Image

from soft_teacher.data.datasets import labeled_records
from soft_teacher.data.geometry import AffineTransform, matrix_of, rotation, shear
from soft_teacher.data.image_files import ImageError, read_index_image
from soft_teacher.data.mapper import LabeledMapper
from soft_teacher.data.semantic_maps import SemanticMapReader

NUM_LABELS = 40
SIZE = (60, 84)


def labels_of(size=SIZE) -> np.ndarray:
    """A map that differs from pixel to pixel, with some unknown ones."""
    values = np.random.default_rng(0).integers(0, NUM_LABELS + 3, size)
    values[values >= NUM_LABELS] = 255
    return values.astype(np.uint8)


@pytest.fixture
def semantic_cfg(cfg, coco):
    cfg.MODEL.ROI_HTC.SEMANTIC_ON = True
    cfg.MODEL.ROI_HTC.SEMANTIC_NUM_CLASSES = NUM_LABELS
    cfg.DATASETS.SEMANTIC_ROOT = str(coco / "maps")
    return cfg


def write_maps(folder, records) -> None:
    folder.mkdir()
    for i, record in enumerate(records):
        name = re.sub(r".*/|\.png", "", record["file_name"])
        size = (record["height"], record["width"])
        Image.fromarray(np.roll(labels_of(size), i, axis=0)).save(folder / f"{name}.png")


def moved_by_hand(labels: np.ndarray, matrix: np.ndarray, size: tuple[int, int]):
    """Each pixel's label is that at the place its center came from, 255 outside; and whether the
    place is clearly inside of one pixel, so that rounding does not matter."""
    back = np.linalg.inv(matrix)
    moved, is_clear = np.full(size, 255, np.uint8), np.zeros(size, bool)
    for i in range(size[0]):
        for j in range(size[1]):
            x, y, _ = back @ (j + 0.5, i + 0.5, 1.0)
            is_clear[i, j] = all(0.1 < z % 1 < 0.9 for z in (x, y))
            if 0 <= x < labels.shape[1] and 0 <= y < labels.shape[0]:
                moved[i, j] = labels[int(y), int(x)]
    return moved, is_clear


TRANSFORMS = {
    "nothing": [],
    "flip": [T.HFlipTransform(SIZE[1])],
    "larger": [T.ResizeTransform(*SIZE, 90, 126)],
    "smaller, flipped": [T.ResizeTransform(*SIZE, 33, 47), T.HFlipTransform(47)],
    "turned": [AffineTransform(rotation(25.0, (42, 30)), 125)],
    "sheared": [T.ResizeTransform(*SIZE, 70, 90), AffineTransform(shear(20.0, -10.0), 125)],
}


@pytest.mark.parametrize("case", TRANSFORMS)
def test_a_map_is_moved_once_by_the_matrix_of_its_view(tmp_path, case):
    Image.fromarray(labels_of()).save(tmp_path / "a.png")
    matrix = matrix_of(TransformList(TRANSFORMS[case] or [T.NoOpTransform()]))
    resizes = [x for x in TRANSFORMS[case] if isinstance(x, T.ResizeTransform)]
    size = (resizes[-1].new_h, resizes[-1].new_w) if resizes else SIZE
    view = {
        "image": torch.zeros(3, *size),
        "matrix": matrix,
        "height": SIZE[0],
        "width": SIZE[1],
    }
    read = SemanticMapReader(NUM_LABELS, max_pixels=10_000)
    found = read({"sem_seg_file_name": str(tmp_path / "a.png")}, view)
    wanted, is_clear = moved_by_hand(labels_of(), matrix, size)
    assert found.dtype == torch.uint8 and found.shape == size
    assert is_clear.mean() > 0.3
    assert np.array_equal(found.numpy()[is_clear], wanted[is_clear])
    assert (found == 255).float().mean() < 0.5


def test_views_of_labeled_images_carry_their_maps_where_the_image_shows_them(semantic_cfg, coco):
    """Pixels of the image are its labels, so that what is seen is what must be said."""
    semantic_cfg.INPUT.AUG.COLOR = False
    semantic_cfg.MODEL.ROI_HTC.SEMANTIC_ON = False
    records = labeled_records(semantic_cfg)
    semantic_cfg.MODEL.ROI_HTC.SEMANTIC_ON = True
    write_maps(coco / "maps", records)
    for record in records:
        # Large blocks, so that few pixels of the view are interpolated.
        blocks = cv2.resize(
            np.random.default_rng(1).integers(0, NUM_LABELS, (3, 3), np.uint8),
            (record["width"], record["height"]),
            interpolation=cv2.INTER_NEAREST,
        )
        Image.fromarray(blocks).save(record["file_name"].replace("/images/", "/maps/"))
        Image.fromarray(np.stack([blocks * 5] * 3, axis=-1)).save(record["file_name"])
    mapper = LabeledMapper(semantic_cfg)
    for record in labeled_records(semantic_cfg):
        for seed in range(4):
            view = mapper(record, seed)
            shown = view["image"][0].int() - 5 * view["sem_seg"].int()
            assert view["sem_seg"].shape == view["image"].shape[1:]
            assert (shown.abs() < 5).float().mean() > 0.8


def test_views_carry_no_maps_if_none_are_wanted(cfg):
    (record, *_) = labeled_records(cfg)
    assert "sem_seg_file_name" not in record
    assert "sem_seg" not in LabeledMapper(cfg)(record, 0)


def test_maps_are_found_beside_one_another_and_those_that_records_name_are_kept(semantic_cfg, coco):
    semantic_cfg.MODEL.ROI_HTC.SEMANTIC_ON = False
    plain = labeled_records(semantic_cfg)
    semantic_cfg.MODEL.ROI_HTC.SEMANTIC_ON = True
    write_maps(coco / "maps", plain)
    for record in labeled_records(semantic_cfg):
        wanted = record["file_name"].replace("/images/", "/maps/")
        assert record["sem_seg_file_name"] == wanted


@pytest.mark.parametrize(
    ("root", "message"),
    [("", "set DATASETS.SEMANTIC_ROOT to"), ("nowhere", "correct DATASETS.SEMANTIC_ROOT")],
)
def test_missing_maps_are_an_error_before_training(semantic_cfg, root, message):
    semantic_cfg.DATASETS.SEMANTIC_ROOT = root
    with pytest.raises(ValueError, match=message):
        labeled_records(semantic_cfg)


def view_of(size) -> dict:
    return {
        "image": torch.zeros(3, *size),
        "matrix": np.eye(3),
        "height": size[0],
        "width": size[1],
    }


def test_a_map_of_another_size_or_with_an_unknown_label_is_an_error_that_names_it(tmp_path):
    file = str(tmp_path / "a.png")
    Image.fromarray(labels_of()).save(file)
    record = {"sem_seg_file_name": file}
    read = SemanticMapReader(NUM_LABELS, max_pixels=10_000)
    with pytest.raises(ImageError, match=r"a\.png has 84 x 60 pixels, its image 60 x 84"):
        read(record, view_of(SIZE[::-1]))
    message = r"label 3\d, but MODEL.ROI_HTC.SEMANTIC_NUM_CLASSES is 30"
    with pytest.raises(ImageError, match=message):
        SemanticMapReader(30, max_pixels=10_000)(record, view_of(SIZE))
    with pytest.raises(ImageError, match=r"more than INPUT\.MAX_PIXELS"):
        SemanticMapReader(NUM_LABELS, max_pixels=1000)(record, view_of(SIZE))


def test_indices_of_a_palette_are_read_and_not_the_gray_of_its_colors(tmp_path):
    image = Image.fromarray(labels_of()).convert("P")
    image.putpalette([x for i in range(256) for x in (255 - i, i // 2, 7)])
    indices = np.asarray(image)
    image.save(tmp_path / "a.png")
    assert np.array_equal(read_index_image(str(tmp_path / "a.png")), indices)


def test_a_color_image_is_no_map(tmp_path):
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: its pixels are no single bytes"):
        read_index_image(str(tmp_path / "a.png"))
