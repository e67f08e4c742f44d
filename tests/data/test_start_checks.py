"""What is looked at before training: test sets that can be evaluated on, images in two sets."""

import copy
import json
import shutil

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from small_coco import coco_content
from soft_teacher.data import check_test_sets, warn_of_shared_images
from soft_teacher.data.start_checks import shared_images


def add_set(cfg, coco, content, role, name="other", folder="images"):
    """Another custom set over the same or other images; returns its name."""
    path = coco / f"{name}.json"
    path.write_text(json.dumps(content))
    full_name = f"{cfg.DATASETS.TRAIN[0]}_{name}"
    cfg.DATASETS.CUSTOM = [*cfg.DATASETS.CUSTOM, [full_name, str(path), str(coco / folder)]]
    cfg.DATASETS[role] = (full_name,)
    return full_name


def perfect_ap(name, tmp_path):
    """AP of detections that are the ground truth itself, by Detectron2's evaluator."""
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path), allow_cached_coco=False)
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        boxes = np.array([x["bbox"] for x in record["annotations"]], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        detections = Instances((record["height"], record["width"]))
        detections.pred_boxes = Boxes(boxes)
        classes = np.array([x["category_id"] for x in record["annotations"]], int)
        detections.pred_classes = classes
        detections.scores = np.ones(len(boxes))
        evaluator.process([record], [{"instances": detections}])
    return evaluator.evaluate()["bbox"]


def test_a_clean_test_file_is_evaluated_as_it_is(cfg, coco, tmp_path):
    name = add_set(cfg, coco, coco_content(), "TEST")
    check_test_sets(cfg)
    assert MetadataCatalog.get(name).json_file == str(coco / "other.json")
    results = perfect_ap(name, tmp_path)
    assert results["AP"] == results["AP-box"] == results["AP-ball"] == pytest.approx(100)


def incomplete(content):
    for annotation in content["annotations"]:
        del annotation["area"], annotation["iscrowd"]


def renumbered(content):
    # The classes keep their names, but their ids are in the other order.
    other = {3: 60, 7: 9}
    for entry in content["categories"]:
        entry["id"] = other[entry["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = other[annotation["category_id"]]


def flawed(content):
    content["annotations"][0]["bbox"] = [1, 2, float("nan"), 4]
    content["annotations"][2]["id"] = 2


def counted_from_zero(content):
    # pycocotools takes the id 0 of a match for none.
    for number, annotation in enumerate(content["annotations"]):
        annotation["id"] = number


def numbered_by_texts(content):
    for annotation in content["annotations"]:
        annotation["id"] = f"object {annotation['id']}"


def without_a_known_area(content):
    content["annotations"][0]["area"] = None


def without_info(content):
    del content["info"]


@pytest.mark.parametrize(
    "change",
    [
        *(incomplete, renumbered, flawed),
        *(counted_from_zero, numbered_by_texts, without_a_known_area, without_info),
    ],
)
def test_a_test_file_that_pycocotools_stumbles_over_is_evaluated_all_the_same(
    cfg, coco, tmp_path, change
):
    content = coco_content()
    # Only images with a ball, so that a mix-up of the classes shows.
    if change is renumbered:
        content["annotations"] = [x for x in content["annotations"] if x["category_id"] == 7]
    change(content)
    name = add_set(cfg, coco, content, "TEST")
    check_test_sets(cfg)
    check_test_sets(cfg)
    results = perfect_ap(name, tmp_path)
    assert results["AP"] == results["AP-ball"] == pytest.approx(100)
    if change is renumbered:
        assert np.isnan(results["AP-box"])


def test_other_class_names_in_the_test_set_are_refused_before_training(cfg, coco):
    content = coco_content()
    content["categories"][0]["name"] = "cat"
    add_set(cfg, coco, content, "TEST")
    with pytest.raises(ValueError, match=r"other\.json .*only here \['cat'\].*there \['box'\]"):
        check_test_sets(cfg)


def test_a_missing_test_image_is_refused_before_training(cfg, coco):
    content = coco_content()
    content["images"][0]["file_name"] = "gone.png"
    add_set(cfg, coco, content, "TEST")
    with pytest.raises(ValueError, match=r"test set .*gone\.png"):
        check_test_sets(cfg)


def test_a_test_set_without_annotations_is_refused_by_key(cfg, coco):
    cfg.DATASETS.TEST = (f"{cfg.DATASETS.TRAIN[0]}_folder",)
    cfg.DATASETS.CUSTOM += [[cfg.DATASETS.TEST[0], "", str(coco / "images")]]
    with pytest.raises(ValueError, match=r"DATASETS\.TEST names .*no annotations"):
        check_test_sets(cfg)


def test_a_wrong_number_of_classes_is_refused_before_training(cfg, coco):
    add_set(cfg, coco, coco_content(), "TEST")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    with pytest.raises(ValueError, match=r"MODEL\.ROI_HEADS\.NUM_CLASSES .* set it to 2"):
        check_test_sets(cfg)


def test_a_test_set_alone_brings_its_own_classes(cfg, coco):
    name = add_set(cfg, coco, coco_content(), "TEST")
    cfg.DATASETS.TRAIN = ()
    check_test_sets(cfg)
    assert MetadataCatalog.get(name).thing_classes == ["box", "ball"]


def test_images_in_two_sets_are_counted(cfg, coco, caplog):
    content = coco_content()
    content["images"] = content["images"][:3]
    content["annotations"] = content["annotations"][:3]
    add_set(cfg, coco, content, "TEST")
    warn_of_shared_images(cfg)
    assert "7 images are both labeled and unlabeled" in caplog.text
    assert "3 images are both labeled and test" in caplog.text
    assert "3 images are both unlabeled and test" in caplog.text


def test_disjoint_sets_are_passed_over_in_silence(cfg, coco, caplog):
    content = coco_content()
    parts = [copy.deepcopy(content) for _ in range(2)]
    for part, wanted in zip(parts, (slice(0, 3), slice(3, 7)), strict=True):
        part["images"] = content["images"][wanted]
        part["annotations"] = content["annotations"][wanted]
    add_set(cfg, coco, parts[0], "TRAIN", "train")
    add_set(cfg, coco, parts[1], "UNLABELED", "unlabeled")
    warn_of_shared_images(cfg)
    assert "images are both" not in caplog.text


def test_the_same_image_is_known_by_a_link_and_by_id_name_and_size(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/1.png").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")

    def record(folder, image_id, width=3):
        name = str(tmp_path / folder / "1.png")
        return {"file_name": name, "image_id": image_id, "height": 4, "width": width}

    first = [record("a", 1)]
    assert shared_images(first, [record("link", 8)])
    assert shared_images(first, [record("copy", 1)])
    assert not shared_images(first, [record("copy", 2)])
    assert not shared_images(first, [record("copy", 1, width=9)])
