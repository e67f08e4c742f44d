"""Boxes on the pictures of training data frame what they are said to frame."""

from itertools import chain, islice

import numpy as np
import pytest
import torch
from detectron2.structures import BoxMode

from marked_images import BACKGROUND, CLASSES, MARK, SCENES, change_annotations, marked_config
from soft_teacher.analysis import data_pictures
from soft_teacher.analysis.data_pictures import (
    SIDE,
    SamplePicture,
    ViewPicture,
    carry_boxes,
    describe_view,
    draw_labeled_samples,
    draw_unlabeled_samples,
    draw_view,
    reference_boxes,
    true_boxes,
)
from soft_teacher.data import build_labeled_loader, build_unlabeled_loader, unlabeled_ground_truth
from soft_teacher.modeling.view_geometry import OUTLINES

SEEDS = range(12)


@pytest.fixture
def cfg(tmp_path):
    return marked_config(tmp_path)


def marked_pixels(image):
    """Mask (H, W) of an RGB image's pixels that are nearer to the mark than to the rest."""
    distances = [
        np.linalg.norm(image.astype(float) - color, axis=2) for color in (MARK, BACKGROUND)
    ]
    gray = np.linalg.norm(image.astype(float) - 125, axis=2)
    return (distances[0] < distances[1]) & (distances[0] < gray)


def extent(mask):
    """The box around a mask, xyxy with the last pixel inside."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def rgb(view):
    """Detectron2's images are BGR unless the config says otherwise."""
    return view["image"].numpy().transpose(1, 2, 0)[:, :, ::-1]


def pairs(cfg, count):
    """The first unlabeled pairs of views, each with the true boxes of its image."""
    truth = unlabeled_ground_truth(cfg)
    for pair in islice(chain.from_iterable(build_unlabeled_loader(cfg)), count):
        weak = pair["weak"]
        named = true_boxes(truth[weak["file_name"]], CLASSES, (weak["height"], weak["width"]))
        yield pair, named


@pytest.mark.parametrize("seed", SEEDS)
def test_a_carried_box_frames_the_same_pixels_in_both_views(cfg, seed):
    cfg.SEED = seed
    cfg.INPUT.AUG.MAX_ROTATE = cfg.INPUT.AUG.MAX_SHEAR = 0.0
    for pair, named in pairs(cfg, 6):
        carried = carry_boxes(named.boxes, pair["weak"], pair["strong"])
        for view, boxes in zip((pair["weak"], pair["strong"]), carried, strict=True):
            np.testing.assert_allclose(boxes[0], extent(marked_pixels(rgb(view))), atol=1.1)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_box_that_was_turned_or_sheared_still_holds_all_of_its_pixels(cfg, seed):
    cfg.SEED = seed
    cfg.INPUT.AUG.MAX_TRANSLATE = 0.0
    for pair, named in pairs(cfg, 6):
        _, strong = carry_boxes(named.boxes, pair["weak"], pair["strong"])
        x0, y0, x1, y1 = extent(marked_pixels(rgb(pair["strong"])))
        assert (strong[0, :2] <= torch.tensor([x0, y0]) + 1.1).all()
        assert (strong[0, 2:] >= torch.tensor([x1, y1]) - 1.1).all()


@pytest.mark.parametrize("seed", SEEDS[:4])
def test_the_outline_is_drawn_around_the_pixels_at_the_size_of_the_picture(cfg, seed):
    cfg.SEED = seed
    cfg.INPUT.AUG.MAX_ROTATE = cfg.INPUT.AUG.MAX_SHEAR = 0.0
    for pair, named in pairs(cfg, 3):
        carried = carry_boxes(named.boxes, pair["weak"], pair["strong"])
        for view, boxes in zip((pair["weak"], pair["strong"]), carried, strict=True):
            plain = draw_view(view, boxes[:0], [], "BGR")
            drawn = draw_view(view, boxes, [""], "BGR")
            assert max(plain.shape[:2]) == SIDE
            changed = (plain != drawn).any(axis=2)
            # Half the line lies outside of the box, and a pixel of the view is up to ten here.
            tolerance = 4 + SIDE / max(view["image"].shape[1:])
            np.testing.assert_allclose(
                extent(changed), extent(marked_pixels(plain)), atol=tolerance
            )


def test_the_pictures_show_the_first_images_of_training_in_their_order(cfg):
    labeled = [x["file_name"] for batch in islice(build_labeled_loader(cfg), 3) for x in batch]
    unlabeled = [
        x["weak"]["file_name"] for batch in islice(build_unlabeled_loader(cfg), 2) for x in batch
    ]
    # More than the set has, and no whole number of batches.
    assert [x.file_name for x in draw_labeled_samples(cfg, 5)] == labeled[:5]
    assert [x.file_name for x in draw_unlabeled_samples(cfg, 5)] == unlabeled[:5]


def test_the_labeled_view_is_the_one_that_training_sees(cfg, monkeypatch):
    cfg.INPUT.AUG.COLOR = True
    drawn = []

    def record(view, boxes, labels, image_format, masks=None):
        drawn.append((view, boxes, labels))
        return draw_view(view, boxes, labels, image_format, masks)

    monkeypatch.setattr(data_pictures, "draw_view", record)
    draw_labeled_samples(cfg, 4)
    seen = list(chain.from_iterable(islice(build_labeled_loader(cfg), 2)))
    for (view, boxes, labels), sample in zip(drawn, seen, strict=True):
        assert torch.equal(view["image"], sample["image"])
        assert torch.equal(boxes, sample["instances"].gt_boxes.tensor)
        assert labels == [CLASSES[i] for i in sample["instances"].gt_classes]


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_masks_tint_the_object_only_if_the_model_learns_them(cfg, mask_format):
    cfg.INPUT.MASK_FORMAT = mask_format
    without = [x.views[0].image for x in draw_labeled_samples(cfg, 3)]
    cfg.MODEL.MASK_ON = True
    masked = [x.views[0].image for x in draw_labeled_samples(cfg, 3)]
    samples = islice(chain.from_iterable(build_labeled_loader(cfg)), 3)
    for sample, plain, tinted in zip(samples, without, masked, strict=True):
        changed = (plain != tinted).any(axis=2)
        scale = SIDE / max(sample["image"].shape[1:])
        box = (scale * sample["instances"].gt_boxes.tensor[0]).tolist()
        np.testing.assert_allclose(extent(changed), box, atol=scale + 3)
        x0, y0, x1, y1 = (round(x) for x in box)
        # Below the label, which hides the tint.
        assert changed[y0 + 40 : y1 - 10, x0 + 10 : x1 - 10].mean() > 0.99


@pytest.mark.parametrize("outline", OUTLINES)
def test_known_objects_of_unlabeled_images_are_drawn_where_the_views_have_them(cfg, outline):
    cfg.SOFT_TEACHER.PSEUDO_LABELS.OUTLINE = outline
    samples = draw_unlabeled_samples(cfg, 4)
    for sample, (pair, named) in zip(samples, pairs(cfg, 4), strict=True):
        carried = carry_boxes(named.boxes, pair["weak"], pair["strong"], outline)
        for picture, kind, boxes in zip(sample.views, ("weak", "strong"), carried, strict=True):
            assert "; 1 object" in picture.caption
            expected = draw_view(pair[kind], boxes, named.labels, "BGR")
            assert np.array_equal(picture.image, expected)


def test_the_sheet_holds_both_views_whole_and_all_of_a_long_name():
    views = [
        ViewPicture(title, "4 x 4 px", np.full((60, 100, 3), shade, np.uint8))
        for title, shade in (("Weak view", 10), ("Strong view", 90))
    ]
    short, long = (SamplePicture(name, views).sheet() for name in ("a", "x" * 100))
    assert [(short == shade).all(axis=2).sum() >= 6000 for shade in (10, 90)] == [True, True]
    assert short.shape[1] == long.shape[1] == 208
    added = long.shape[0] - short.shape[0]
    assert added > 40
    assert (long[-added:, -2:] == 255).all(), "no letter is cut off at the right"
    assert (long[-added:] < 100).any()


def test_without_annotations_a_grid_stands_in(cfg):
    change_annotations(cfg.DATASETS.CUSTOM[1][1], lambda x: x["annotations"].clear())
    for sample in draw_unlabeled_samples(cfg, 3):
        assert [x.title for x in sample.views] == ["Weak view", "Strong view"]
        assert "9 reference boxes" in sample.views[0].caption


def test_the_grid_covers_the_image_without_overlaps():
    named = reference_boxes((60, 90))
    assert named.labels == [str(i) for i in range(1, 10)]
    covered = np.zeros((60, 90), int)
    for x0, y0, x1, y1 in named.boxes.round().int().tolist():
        covered[y0:y1, x0:x1] += 1
    assert covered.max() == 1
    rows, columns = covered.any(axis=1), covered.any(axis=0)
    assert rows.sum() == 3 * 14 and columns.sum() == 3 * 21
    # Numbered as one reads.
    centers = (named.boxes[:, :2] + named.boxes[:, 2:]) / 2
    np.testing.assert_allclose(centers[[0, 2, 8]], [[15, 10], [75, 10], [75, 50]], atol=1e-4)


def test_true_boxes_are_numbered_and_crowds_left_out():
    box = {"bbox": [1, 2, 3, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
    other = {**box, "bbox": [5, 6, 7, 8], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    named = true_boxes([box, {**box, "iscrowd": 1}, other], CLASSES, (20, 20))
    assert named.labels == ["1: ball", "2: box"]
    assert named.boxes.tolist() == [[1, 2, 4, 6], [5, 6, 7, 8]]
    assert true_boxes([], CLASSES, (20, 20)).boxes.shape == (0, 4)


def test_an_object_that_left_the_strong_view_is_counted_and_not_drawn():
    image = torch.full((3, 50, 60), 90, dtype=torch.uint8)
    common = {"image": image, "height": 50, "width": 60, "file_name": "x.png"}
    shift = np.array([[1.0, 0, 55], [0, 1, 0], [0, 0, 1]])
    weak, strong = {**common, "matrix": np.eye(3)}, {**common, "matrix": shift}
    boxes = torch.tensor([[30.0, 10, 50, 40], [1.0, 10, 4, 40]])
    named = data_pictures.NamedBoxes(boxes, ["a", "b"], data_pictures.OBJECTS)
    pictures = data_pictures.draw_pair(weak, strong, named, "BGR").views
    assert [x.caption.split("; ")[1] for x in pictures] == [
        "2 objects",
        "2 objects, 1 of them outside",
    ]
    alone = draw_view(strong, boxes[1:] + torch.tensor([55.0, 0, 55, 0]), ["b"], "BGR")
    changed = (pictures[1].image != draw_view(strong, boxes[:0], [], "BGR")).any(axis=2)
    assert extent(changed) == extent((alone != alone[0, 0]).any(axis=2))
    # What is left keeps its color, a green; alone it would be the first, a red.
    assert pictures[1].image[changed].mean(axis=0).argmax() == 1
    assert alone[changed].mean(axis=0).argmax() == 0


def test_a_view_is_described_by_its_size_scale_and_flip():
    view = {"image": torch.zeros(3, 30, 40), "matrix": np.diag([0.5, 0.5, 1.0])}
    assert describe_view(view) == "40 x 30 px, scale 0.50"
    flip_and_turn = np.array([[0.0, -1.5, 40], [-1.5, 0, 30], [0, 0, 1]])
    assert describe_view({**view, "matrix": flip_and_turn}) == "40 x 30 px, scale 1.50, flipped"


def test_class_names_may_hold_what_looks_like_a_formula(cfg):
    def rename(content):
        content["categories"][0]["name"] = r"$\nonsense$"

    for _, file, _ in cfg.DATASETS.CUSTOM:
        change_annotations(file, rename)
    captions = [x.views[0].caption for x in draw_labeled_samples(cfg, len(SCENES))]
    assert sum(r"1 object: $\nonsense$" in x for x in captions) == 2


def test_sets_that_are_missing_are_named_by_their_key(cfg):
    train, cfg.DATASETS.TRAIN = cfg.DATASETS.TRAIN, ()
    for draw in (draw_labeled_samples, draw_unlabeled_samples):
        with pytest.raises(ValueError, match=r"DATASETS\.TRAIN is empty"):
            draw(cfg, 1)
    cfg.DATASETS.TRAIN, cfg.DATASETS.UNLABELED = train, ()
    with pytest.raises(ValueError, match=r"DATASETS\.UNLABELED is empty"):
        draw_unlabeled_samples(cfg, 1)
