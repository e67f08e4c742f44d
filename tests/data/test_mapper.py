import copy

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode
from PIL import ExifTags, Image

from soft_teacher.data.image_files import ImageError, OpenedImage
from soft_teacher.data.mapper import ImageMapper, LabeledMapper, TwoViewMapper

WIDTH, HEIGHT = 200, 150
BOX = [80, 60, 110, 85]


@pytest.fixture
def record(tmp_path):
    """An image, black but for a bright rectangle that its only object covers."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 200
    file_name = str(tmp_path / "rectangle.png")
    Image.fromarray(image).save(file_name)
    box = {"bbox": BOX, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1, "iscrowd": 0}
    return {
        "file_name": file_name,
        "height": HEIGHT,
        "width": WIDTH,
        "image_id": 42,
        "annotations": [box],
    }


@pytest.fixture
def plain_cfg(cfg):
    """Geometry alone, on black, so that the rectangle can be found again."""
    cfg.INPUT.MIN_SIZE_TRAIN = (100, 300)
    cfg.INPUT.MAX_SIZE_TRAIN = 400
    cfg.INPUT.AUG.COLOR = False
    cfg.INPUT.AUG.ERASE_PATCHES = (0, 0)
    cfg.INPUT.AUG.FILL = 0
    return cfg


def center_of_light(view):
    """Center of the bright pixels, (2,), pixel centers at +0.5."""
    weight = view["image"][0].double().numpy()
    ys, xs = np.mgrid[: weight.shape[0], : weight.shape[1]] + 0.5
    return np.array([(xs * weight).sum(), (ys * weight).sum()]) / weight.sum()


def move(matrix, points):
    return points @ matrix[:2, :2].T + matrix[:2, 2]


def corners(box):
    x0, y0, x1, y1 = box
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64)


def same(left, right):
    """Deep equality of what mappers return, masks aside."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return np.array_equal(left, right)
    if hasattr(left, "gt_boxes"):
        return torch.equal(left.gt_boxes.tensor, right.gt_boxes.tensor) and torch.equal(
            left.gt_classes, right.gt_classes
        )
    return left == right


@pytest.mark.parametrize("seed", range(12))
def test_the_matrix_of_each_view_says_where_the_rectangle_went(plain_cfg, record, seed):
    views = TwoViewMapper(plain_cfg)(record, seed)
    center = np.array([BOX[0] + BOX[2], BOX[1] + BOX[3]]) / 2
    for view in views.values():
        expected = move(view["matrix"], center)
        # Resampling hard edges costs up to a tenth of a pixel; a wrong frame, a quarter or more.
        assert center_of_light(view) == pytest.approx(expected, abs=0.12)


@pytest.mark.parametrize("seed", range(12))
def test_matrices_carry_a_box_from_weak_to_strong_and_back(cfg, record, seed):
    views = TwoViewMapper(cfg)(record, seed)
    weak, strong = (views[name]["matrix"] for name in ("weak", "strong"))
    there = strong @ np.linalg.inv(weak)
    in_weak, in_strong = move(weak, corners(BOX)), move(strong, corners(BOX))
    assert move(there, in_weak) == pytest.approx(in_strong, abs=1e-3)
    assert move(np.linalg.inv(there), in_strong) == pytest.approx(in_weak, abs=1e-3)


@pytest.mark.parametrize("seed", range(8))
def test_labeled_boxes_are_the_originals_moved_by_the_matrix(cfg, record, seed):
    view = LabeledMapper(cfg)(record, seed)
    moved = move(view["matrix"], corners(BOX))
    expected = [*moved.min(0), *moved.max(0)]
    box = view["instances"].gt_boxes.tensor[0]
    assert box.dtype == torch.float32
    # Integers in the annotation do not make integers of the moved box.
    assert box.numpy() == pytest.approx(expected, abs=1e-3)
    assert view["instances"].image_size == tuple(view["image"].shape[1:])
    assert view["instances"].gt_classes.tolist() == [1]


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others(cfg, record):
    for mapper in (LabeledMapper(cfg), TwoViewMapper(cfg)):
        first = mapper(record, 1)
        np.random.seed(99)
        assert same(first, mapper(record, 1))
        assert not same(first, mapper(record, 2))


def test_mapping_leaves_the_record_and_the_global_generators_alone(cfg, record):
    before = copy.deepcopy(record)
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    LabeledMapper(cfg)(record, 3)
    TwoViewMapper(cfg)(record, 3)
    assert record == before
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_unlabeled_views_hold_no_annotation_even_if_the_record_does(cfg, record):
    views = TwoViewMapper(cfg)(record, 0)
    keys = {"image", "matrix", "height", "width", "file_name", "image_id"}
    assert views.keys() == {"weak", "strong"}
    assert all(view.keys() == keys for view in views.values())


def test_views_have_the_types_of_the_contract(cfg, record):
    for view in TwoViewMapper(cfg)(record, 0).values():
        assert view["image"].dtype == torch.uint8 and view["image"].is_contiguous()
        assert view["matrix"].dtype == np.float64 and view["matrix"].shape == (3, 3)
        assert (view["height"], view["width"]) == (HEIGHT, WIDTH)
        assert (view["file_name"], view["image_id"]) == (record["file_name"], 42)


def test_one_decode_serves_both_views(cfg, record, monkeypatch):
    calls = []
    decode = OpenedImage.decode
    monkeypatch.setattr(
        OpenedImage, "decode", lambda self, *rest: calls.append(rest) or decode(self, *rest)
    )
    TwoViewMapper(cfg)(record, 0)
    assert len(calls) == 1


def test_channels_come_in_the_format_of_the_config(plain_cfg, tmp_path):
    Image.new("RGB", (30, 20), (10, 20, 30)).save(tmp_path / "color.png")
    record = {"file_name": str(tmp_path / "color.png"), "image_id": 0}
    for image_format, expected in (("RGB", [10, 20, 30]), ("BGR", [30, 20, 10])):
        plain_cfg.INPUT.FORMAT = image_format
        view = TwoViewMapper(plain_cfg)(record, 0)["weak"]
        assert view["image"][:, 0, 0].tolist() == expected


def test_crowds_and_objects_without_area_are_dropped(cfg, record):
    crowd = {**record["annotations"][0], "iscrowd": 1}
    outside = {**record["annotations"][0], "bbox": [500, 500, 600, 600]}
    record["annotations"] += [crowd, outside]
    assert len(LabeledMapper(cfg)(record, 0)["instances"]) == 1


def test_masks_follow_the_image_when_the_model_has_masks(plain_cfg, record):
    x0, y0, x1, y1 = BOX
    # Integers again, in a polygon.
    record["annotations"][0]["segmentation"] = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    assert not LabeledMapper(plain_cfg)(record, 0)["instances"].has("gt_masks")
    plain_cfg.MODEL.MASK_ON = True
    for seed in range(4):
        instances = LabeledMapper(plain_cfg)(record, seed)["instances"]
        boxes = instances.gt_masks.get_bounding_boxes().tensor
        assert torch.allclose(boxes, instances.gt_boxes.tensor, atol=1e-3)


def test_images_are_turned_upright_by_their_exif_tag(plain_cfg, tmp_path):
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, :15] = 200
    exif = Image.Exif()
    exif[274] = 6  # stored on its side: turn right by 90 degrees
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    record = {"file_name": str(tmp_path / "turned.png"), "image_id": 0}
    view = TwoViewMapper(plain_cfg)(record, 0)["weak"]
    assert (view["height"], view["width"]) == (30, 20)
    _, height, _ = view["image"].shape
    assert view["image"][:, : height // 3].min() > 190
    assert view["image"][:, -height // 3 :].max() < 10


@pytest.mark.parametrize("content", [None, b"", b"no image", b"\x89PNG\r\n\x1a\n broken"])
def test_an_unreadable_image_is_named_by_its_file(cfg, record, tmp_path, content):
    record["file_name"] = str(tmp_path / "broken.png")
    if content is not None:
        (tmp_path / "broken.png").write_bytes(content)
    for mapper in (LabeledMapper(cfg), TwoViewMapper(cfg)):
        with pytest.raises(OSError, match=r"broken\.png"):
            mapper(record, 0)


def test_a_truncated_image_is_named_by_its_file(cfg, record, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "half.jpg")
    content = (tmp_path / "half.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(content[: len(content) // 2])
    record["file_name"] = str(tmp_path / "half.jpg")
    with pytest.raises(OSError, match=r"half\.jpg"):
        LabeledMapper(cfg)(record, 0)


def test_a_size_that_differs_from_the_file_is_refused_where_boxes_depend_on_it(cfg, record):
    record["width"] = WIDTH + 1
    with pytest.raises(ImageError, match=r"rectangle\.png has 200 x 150 .* for 201 x 150"):
        LabeledMapper(cfg)(record, 0)
    view = TwoViewMapper(cfg)(record, 0)["weak"]
    assert (view["height"], view["width"]) == (HEIGHT, WIDTH)


def test_a_test_image_is_resized_as_detectron2_does_and_keeps_its_size_in_the_record(cfg, record):
    ours = ImageMapper(cfg)(record)
    theirs = DatasetMapper(cfg, is_train=False)(record)
    assert torch.equal(ours["image"], theirs["image"])
    assert {k: ours[k] for k in ("height", "width", "file_name", "image_id")} == {
        k: theirs[k] for k in ("height", "width", "file_name", "image_id")
    }


def test_an_unreadable_test_image_is_named_by_its_file(cfg, record, tmp_path):
    record["file_name"] = str(tmp_path / "broken.png")
    with pytest.raises(ImageError, match=r"broken\.png"):
        ImageMapper(cfg)(record)


@pytest.mark.parametrize("turned_in_json", [False, True])
def test_boxes_stay_on_the_object_of_an_image_that_exif_turns(plain_cfg, tmp_path, turned_in_json):
    # The object as it lies in the file, which is shown turned by a quarter to the right.
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[5:15, 20:50] = 200
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    # Labeling tools show the image turned or as it lies, and state the size that they have seen.
    size, box = ((60, 40), [25, 20, 35, 50]) if turned_in_json else ((40, 60), [20, 5, 50, 15])
    annotation = {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
    record = {"file_name": str(tmp_path / "turned.png"), "image_id": 1, "annotations": [annotation]}
    record["height"], record["width"] = size
    view = LabeledMapper(plain_cfg)(record, 0)
    bright = view["image"][0] > 100
    rows, columns = (torch.nonzero(bright.any(dim=d)).flatten() for d in (1, 0))
    found = view["instances"].gt_boxes.tensor[0].tolist()
    expected = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
    assert found == pytest.approx(expected, abs=1.5)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (2, 12000)])
def test_the_smallest_and_the_longest_images_get_their_views(cfg, tmp_path, size):
    height, width = size
    Image.new("RGB", (width, height), (9, 9, 9)).save(tmp_path / "odd.png")
    record = {"file_name": str(tmp_path / "odd.png"), "image_id": 0}
    views = TwoViewMapper(cfg)(record, 3)
    for view in (*views.values(), ImageMapper(cfg)(record)):
        assert (view["height"], view["width"]) == size
        assert min(view["image"].shape[1:]) >= 1


def test_a_large_jpeg_is_decoded_smaller_and_its_views_stay_where_their_matrices_say(
    plain_cfg, tmp_path, monkeypatch
):
    # 8 times as large as the views at most, so that it may be decoded at up to a fourth.
    height, width = 1600, 2400
    blocks = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    pixels = cv2.resize(blocks, (width, height), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(pixels).save(tmp_path / "large.jpg", quality=95)
    record = {"file_name": str(tmp_path / "large.jpg"), "image_id": 0}
    plain_cfg.INPUT.MIN_SIZE_TRAIN = (150, 250)
    used = []
    decode = OpenedImage.decode
    monkeypatch.setattr(
        OpenedImage, "decode", lambda self, factor: used.append(factor) or decode(self, factor)
    )
    quick = [TwoViewMapper(plain_cfg)(record, seed) for seed in range(6)]
    assert set(used) == {4}
    monkeypatch.setattr(OpenedImage, "decode", lambda self, factor: decode(self))
    for seed, views in enumerate(quick):
        for name, exact in TwoViewMapper(plain_cfg)(record, seed).items():
            found = views[name]
            assert (found["height"], found["width"]) == (height, width)
            assert np.array_equal(found["matrix"], exact["matrix"])
            difference = (found["image"].int() - exact["image"].int()).abs()
            assert difference.float().mean() <= 1 and difference.max() <= 20


def test_an_image_of_cocos_size_is_decoded_as_a_whole(cfg, tmp_path, monkeypatch):
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (400, 1200), 1333
    Image.new("RGB", (640, 480), (1, 2, 3)).save(tmp_path / "coco.jpg")
    used = []
    decode = OpenedImage.decode
    monkeypatch.setattr(
        OpenedImage, "decode", lambda self, factor: used.append(factor) or decode(self, factor)
    )
    for seed in range(5):
        TwoViewMapper(cfg)({"file_name": str(tmp_path / "coco.jpg"), "image_id": 0}, seed)
    assert set(used) == {1}
