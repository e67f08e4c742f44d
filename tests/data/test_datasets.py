import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from small_coco import SIZES
from soft_teacher.data import (
    labeled_records,
    register_custom_datasets,
    resolve_dataset_names,
    unlabeled_ground_truth,
    unlabeled_records,
)
from soft_teacher.data.coco_file import load_image_records


def edit(coco, change):
    """Rewrite the annotation file."""
    path = coco / "annotations.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_labeled_records_hold_contiguous_classes(cfg):
    records = labeled_records(cfg)
    assert [record["image_id"] for record in records] == list(range(10, 17))
    assert [r["annotations"][0]["category_id"] for r in records] == [0, 1, 0, 1, 0, 1, 0]


def test_labeled_images_without_an_object_are_left_out_crowds_do_not_count(cfg, coco):
    def change(data):
        data["annotations"][0]["iscrowd"] = 1
        del data["annotations"][1]

    edit(coco, change)
    assert [record["image_id"] for record in labeled_records(cfg)] == list(range(12, 17))


def test_unlabeled_records_have_no_annotation_and_keep_empty_images(cfg, coco):
    edit(coco, lambda data: data["annotations"].pop())
    records = unlabeled_records(cfg)
    assert len(records) == 7
    assert all(r.keys() == {"file_name", "height", "width", "image_id"} for r in records)
    assert all(Path(record["file_name"]).is_file() for record in records)


def test_unlabeled_sets_need_neither_annotations_nor_categories(cfg, coco):
    def change(data):
        del data["annotations"], data["categories"]

    edit(coco, change)
    assert len(unlabeled_records(cfg)) == 7
    assert unlabeled_ground_truth(cfg) == {}


def test_unlabeled_sets_registered_by_a_function_lose_their_annotations_too(cfg, coco):
    cfg.DATASETS.UNLABELED = (f"function_{coco.name}_{id(coco)}",)
    record = {"file_name": "a", "height": 1, "width": 2, "image_id": 3, "annotations": [{}]}
    DatasetCatalog.register(cfg.DATASETS.UNLABELED[0], lambda: [dict(record)])
    record.pop("annotations")
    assert unlabeled_records(cfg) == [record]


@pytest.mark.parametrize("key", ["image_id", "file_name"])
def test_records_of_a_function_without_what_all_have_are_refused_by_name(cfg, coco, key):
    cfg.DATASETS.UNLABELED = (f"lacks_{key}_{coco.name}_{id(coco)}",)
    record = {"file_name": "a", "height": 1, "width": 2, "image_id": 3}
    record.pop(key)
    DatasetCatalog.register(cfg.DATASETS.UNLABELED[0], lambda: [record])
    with pytest.raises(ValueError, match=rf"Record 0 of the registered set lacks_.* has no {key}"):
        unlabeled_records(cfg)


def test_ground_truth_is_keyed_by_file_and_in_the_original_frame(cfg, coco):
    edit(coco, lambda data: data["annotations"].pop(0))
    truth = unlabeled_ground_truth(cfg)
    assert set(truth) == {record["file_name"] for record in unlabeled_records(cfg)}
    assert truth[str(coco / "images" / "0.png")] == []
    (annotation,) = truth[str(coco / "images" / "1.png")]
    assert annotation["bbox"] == [5, 7, 21, 15] and annotation["category_id"] == 1


def test_a_set_whose_annotations_were_taken_away_has_no_ground_truth(cfg, coco):
    edit(coco, lambda data: data.update(annotations=[]))
    assert unlabeled_ground_truth(cfg) == {}


def test_ground_truth_of_other_classes_is_refused(cfg, coco, caplog):
    labeled_records(cfg)
    data = json.loads((coco / "annotations.json").read_text())
    data["categories"][0]["name"] = "cat"
    (coco / "other.json").write_text(json.dumps(data))
    name = cfg.DATASETS.TRAIN[0] + "_other"
    cfg.DATASETS.CUSTOM += [[name, str(coco / "other.json"), str(coco / "images")]]
    good = unlabeled_ground_truth(cfg)
    cfg.DATASETS.UNLABELED = (name, *cfg.DATASETS.UNLABELED)
    with pytest.raises(ValueError, match="cat"):
        unlabeled_ground_truth(cfg)
    # Or it alone is left out.
    assert unlabeled_ground_truth(cfg, skip_unusable=True) == good != {}
    assert f"Pseudo labels of the set {name} are not measured" in caplog.text


def test_fold_is_filled_in_and_the_config_stays_as_it_is(cfg):
    cfg.DATASETS.TRAIN = ("coco_semi_{fold}@10", "plain")
    cfg.DATASETS.UNLABELED = ("coco_semi_{fold}@10_unlabeled",)
    cfg.DATASETS.FOLD = 4
    names = resolve_dataset_names(cfg)
    assert names == (("coco_semi_4@10", "plain"), ("coco_semi_4@10_unlabeled",))
    assert cfg.DATASETS.TRAIN[0] == "coco_semi_{fold}@10"


def test_built_in_names_follow_the_official_layout():
    for fold in range(1, 6):
        for percent in (1, 2, 5, 10):
            name = f"coco_semi_{fold}@{percent}"
            for suffix, ending in (("", ""), ("_unlabeled", "-unlabeled")):
                metadata = MetadataCatalog.get(name + suffix)
                assert metadata.json_file.endswith(
                    "coco/annotations/semi_supervised/"
                    f"instances_train2017.{fold}@{percent}{ending}.json"
                )
                assert metadata.image_root.endswith("coco/train2017")
                assert len(metadata.thing_classes) == 80
    metadata = MetadataCatalog.get("coco_2017_unlabeled")
    assert metadata.json_file.endswith("coco/annotations/image_info_unlabeled2017.json")
    assert "coco_2017_unlabeled" in DatasetCatalog


def test_registering_twice_is_fine_and_a_second_meaning_of_a_name_is_not(cfg):
    register_custom_datasets(cfg)
    register_custom_datasets(cfg)
    name, json_file, image_root = cfg.DATASETS.CUSTOM[0]
    cfg.DATASETS.CUSTOM = [[name, json_file, image_root + "/elsewhere"]]
    with pytest.raises(ValueError, match=name):
        register_custom_datasets(cfg)


@pytest.mark.parametrize("entry", [["name", "file"], ["name", "file", 3], "abcd"])
def test_a_malformed_custom_set_is_refused_by_key(cfg, entry):
    cfg.DATASETS.CUSTOM = [entry]
    with pytest.raises(ValueError, match=r"DATASETS\.CUSTOM"):
        register_custom_datasets(cfg)


def test_an_unknown_name_gets_the_error_of_detectron2(cfg):
    cfg.DATASETS.TRAIN = cfg.DATASETS.UNLABELED = ("nowhere",)
    for read in (labeled_records, unlabeled_records):
        with pytest.raises(KeyError, match="'nowhere' is not registered"):
            read(cfg)


def test_no_name_at_all_is_refused_by_key(cfg):
    cfg.DATASETS.TRAIN = cfg.DATASETS.UNLABELED = ()
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN"):
        labeled_records(cfg)
    with pytest.raises(ValueError, match=r"DATASETS\.UNLABELED"):
        unlabeled_records(cfg)


def test_a_labeled_set_without_objects_is_refused(cfg, coco):
    edit(coco, lambda data: data.update(annotations=[]))
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN"):
        labeled_records(cfg)


def test_a_labeled_set_without_annotations_is_refused(cfg, coco):
    cfg.DATASETS.TRAIN = (f"bare_{coco.name}_{id(coco)}",)
    records, _ = load_image_records(str(coco / "annotations.json"), "")
    DatasetCatalog.register(cfg.DATASETS.TRAIN[0], lambda: records)
    with pytest.raises(ValueError, match="without annotations"):
        labeled_records(cfg)


def test_an_unlabeled_set_without_images_is_refused(cfg, coco):
    edit(coco, lambda data: data.update(images=[], annotations=[]))
    with pytest.raises(ValueError, match=r"DATASETS\.UNLABELED"):
        unlabeled_records(cfg)


def test_a_wrong_number_of_classes_is_refused_with_the_right_one(cfg):
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    with pytest.raises(ValueError, match=r"MODEL\.ROI_HEADS\.NUM_CLASSES .* set it to 2"):
        labeled_records(cfg)


def test_a_class_that_no_labeled_image_shows_is_announced(cfg, coco, caplog):
    def change(data):
        data["categories"].append({"id": 1, "name": "unseen"})
        data["annotations"][0].update(category_id=1, iscrowd=1)

    edit(coco, change)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    labeled_records(cfg)
    assert "No labeled image shows unseen" in caplog.text


def test_labeled_sets_of_several_files_share_the_classes_of_the_first_by_name(cfg, coco):
    data = json.loads((coco / "annotations.json").read_text())
    for entry in data["categories"]:
        entry["id"] = 100 - entry["id"]
    for annotation in data["annotations"]:
        annotation["category_id"] = 100 - annotation["category_id"]
    (coco / "second.json").write_text(json.dumps(data))
    name = cfg.DATASETS.TRAIN[0] + "_second"
    cfg.DATASETS.CUSTOM += [[name, str(coco / "second.json"), str(coco / "images")]]
    cfg.DATASETS.TRAIN += (name,)
    records = labeled_records(cfg)
    assert [r["annotations"][0]["category_id"] for r in records] == [0, 1, 0, 1, 0, 1, 0] * 2


def test_unlabeled_images_come_from_a_folder_without_any_file(cfg, coco):
    name = cfg.DATASETS.TRAIN[0] + "_folder"
    cfg.DATASETS.CUSTOM += [[name, "", str(coco / "images")]]
    cfg.DATASETS.UNLABELED = (name,)
    records = unlabeled_records(cfg)
    assert [Path(r["file_name"]).name for r in records] == [f"{i}.png" for i in range(7)]
    assert [(r["width"], r["height"]) for r in records] == SIZES
    assert unlabeled_ground_truth(cfg) == {}
