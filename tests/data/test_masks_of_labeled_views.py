"""Masks of labeled images lie where their objects are, in every view, from every kind of file."""

import json

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from PIL import Image
from pycocotools import mask as mask_util

from small_coco import SIZES, coco_content
from soft_teacher.data import check_test_sets
from soft_teacher.data.datasets import labeled_records
from soft_teacher.data.mapper import LabeledMapper

WIDTH, HEIGHT = 200, 150
# No symmetry: a mirrored mask would be another one.
CORNERS = np.array([[70.0, 40], [130, 40], [130, 60], [90, 60], [90, 110], [70, 110]])


def drawn():
    """The object of `CORNERS`, an L of whole pixels, uint8 (H, W)."""
    pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
    pixels[40:110, 70:90] = 1
    pixels[40:60, 70:130] = 1
    return pixels


def compressed():
    return mask_util.encode(np.asfortranarray(drawn()))


def polygons():
    return [CORNERS.reshape(-1).tolist()]


@pytest.fixture
def record(tmp_path):
    """An image that is bright where its only object is, with the object's box."""
    file_name = str(tmp_path / "object.png")
    Image.fromarray(np.stack([drawn() * 200] * 3, axis=-1)).save(file_name)
    box = {"bbox": [70, 40, 130, 110], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    size = {"height": HEIGHT, "width": WIDTH}
    return {"file_name": file_name, **size, "image_id": 1, "annotations": [{**box, "iscrowd": 0}]}


@pytest.fixture
def mask_cfg(cfg):
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN = (60, 300)
    cfg.INPUT.MAX_SIZE_TRAIN = 420
    cfg.INPUT.AUG.COLOR = False
    return cfg


def in_pixels(masks, size):
    return BitMasks.from_polygon_masks(masks, *size) if isinstance(masks, PolygonMasks) else masks


def center(weights):
    """(x, y) of the mean of what is not 0 in (H, W), pixel centers at +0.5."""
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
    return np.array([(x * weights).sum(), (y * weights).sum()]) / weights.sum()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("mask_format", "segmentation"),
    [("polygon", polygons), ("bitmask", polygons), ("bitmask", compressed)],
)
def test_the_mask_covers_the_bright_pixels_of_every_view(
    mask_cfg, record, mask_format, segmentation, seed
):
    """Flipped, larger and smaller views: the object itself shows where its mask must be."""
    mask_cfg.INPUT.MASK_FORMAT = mask_format
    record["annotations"][0]["segmentation"] = segmentation()
    view = LabeledMapper(mask_cfg)(record, seed)
    size = tuple(view["image"].shape[1:])
    mask = in_pixels(view["instances"].gt_masks, size).tensor[0].numpy()
    bright = view["image"][0].numpy() >= 100
    assert (mask & bright).sum() / (mask | bright).sum() > 0.93
    assert center(mask) == pytest.approx(center(bright), abs=0.3)


def test_views_of_both_directions_and_scales_were_tested(mask_cfg, record):
    record["annotations"][0]["segmentation"] = polygons()
    matrices = [LabeledMapper(mask_cfg)(record, seed)["matrix"] for seed in range(8)]
    assert {np.sign(m[0, 0]) for m in matrices} == {-1, 1}
    assert min(m[1, 1] for m in matrices) < 0.7 and max(m[1, 1] for m in matrices) > 1.5


def test_crowds_are_left_out_whatever_their_masks(mask_cfg, record):
    """Crowds have run-length codes, also in files whose objects have polygons."""
    record["annotations"][0]["segmentation"] = polygons()
    crowd = {**record["annotations"][0], "iscrowd": 1, "segmentation": compressed()}
    record["annotations"].append(crowd)
    instances = LabeledMapper(mask_cfg)(record, 0)["instances"]
    assert len(instances) == len(instances.gt_masks) == 1


def test_an_object_whose_mask_vanishes_is_left_out(mask_cfg, record):
    """A pixel that the smaller image skips; its box alone is still there."""
    mask_cfg.INPUT.MASK_FORMAT = "bitmask"
    mask_cfg.INPUT.MIN_SIZE_TRAIN = (10, 10)
    speck = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    speck[40, 70] = 1
    objects = [
        {**record["annotations"][0], "segmentation": mask_util.encode(x)}
        for x in (speck, np.asfortranarray(drawn()))
    ]
    record["annotations"] = objects
    instances = LabeledMapper(mask_cfg)(record, 0)["instances"]
    assert len(instances) == len(instances.gt_masks) == 1
    assert instances.gt_masks.tensor.any()


def write_content(coco, segmentations):
    """The small set with these masks, by turns; None is an object without one."""
    content = coco_content()
    for i, annotation in enumerate(content["annotations"]):
        segmentation = segmentations[i % len(segmentations)]
        if segmentation is not None:
            annotation["segmentation"] = segmentation(*SIZES[i])
    (coco / "annotations.json").write_text(json.dumps(content))


def polygon(width, height):
    return [[5, 7, 26, 7, 26, 22, 5, 22]]


def runs(width, height):
    """The same object as uncompressed runs, column by column."""
    before, after = [5 * height + 7], [(width - 26) * height + height - 22]
    return {"size": [height, width], "counts": before + [15, height - 15] * 20 + [15] + after}


def test_run_lengths_and_polygons_of_one_file_are_the_same_object(mask_cfg, coco):
    write_content(coco, [polygon, runs])
    mask_cfg.INPUT.MASK_FORMAT = "bitmask"
    mask_cfg.INPUT.MIN_SIZE_TRAIN = (48, 48)
    mask_cfg.INPUT.RANDOM_FLIP = "none"
    records = labeled_records(mask_cfg)
    found = LabeledMapper(mask_cfg)(records[1], 0)["instances"].gt_masks.tensor
    write_content(coco, [polygon])
    expected = LabeledMapper(mask_cfg)(labeled_records(mask_cfg)[1], 0)["instances"].gt_masks.tensor
    assert found.shape == expected.shape
    assert (found != expected).sum() / expected.sum() < 0.1


@pytest.mark.parametrize(
    ("segmentations", "mask_format", "message"),
    [
        ([polygon, None], "polygon", r"1\.png has no segmentation, but MODEL\.MASK_ON"),
        (
            [polygon, runs],
            "polygon",
            r"1\.png has .* run-length .*INPUT\.MASK_FORMAT to ",
        ),
        ([lambda w, h: runs(w + 1, h)], "bitmask", r"0\.png, which has 64 x 48 .* for 65 x 48"),
    ],
)
def test_masks_that_cannot_be_learned_are_named_before_training(
    mask_cfg, coco, segmentations, mask_format, message
):
    write_content(coco, segmentations)
    mask_cfg.INPUT.MASK_FORMAT = mask_format
    with pytest.raises(ValueError, match=message):
        labeled_records(mask_cfg)
    mask_cfg.MODEL.MASK_ON = False
    assert len(labeled_records(mask_cfg)) == len(SIZES)


def test_a_test_set_without_masks_is_named_before_training(mask_cfg, coco):
    """Detectron2's evaluator would find out after it, by a KeyError."""
    write_content(coco, [polygon, None])
    mask_cfg.DATASETS.TEST = mask_cfg.DATASETS.TRAIN
    with pytest.raises(ValueError, match=r"The test set .*1\.png has no segmentation"):
        check_test_sets(mask_cfg)
    write_content(coco, [polygon, runs])
    check_test_sets(mask_cfg)


def test_an_image_without_objects_has_no_masks_to_follow(mask_cfg, record):
    record["annotations"] = []
    instances = LabeledMapper(mask_cfg)(record, 0)["instances"]
    assert len(instances) == 0 and torch.equal(instances.gt_classes, torch.zeros(0).long())
