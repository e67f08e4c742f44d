"""Annotation files, good and bad: what is read, what is left out and counted, what is refused."""

import copy
import json
import random

import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import load_coco_json

from small_coco import coco_content
from soft_teacher.data.coco_file import load_coco_set, load_image_records, read_coco_content


def write(tmp_path, content, name="a.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def load(tmp_path, change=lambda content: None, **options):
    content = coco_content()
    change(content)
    return load_coco_set(write(tmp_path, content), "images", **options)


def counts(problems):
    return {kind: problem.count for kind, problem in problems.items()}


def test_a_clean_file_gives_the_records_of_detectron2(tmp_path):
    content = coco_content()
    polygon = [5.5, 7, 26, 7, 26, 22]
    content["annotations"][0]["segmentation"] = [polygon, [1, 2, 3, 4]]
    content["annotations"][1]["segmentation"] = {"size": [60, 40], "counts": [100, 50, 2250]}
    content["annotations"][1]["iscrowd"] = 1
    content["annotations"] += [dict(content["annotations"][2], id=99, category_id=7)]
    path = write(tmp_path, content)
    name = f"reference_{tmp_path.name}"
    expected = load_coco_json(path, "images", name)
    found = load_coco_set(path, "images")
    assert found.records == expected
    assert found.classes == MetadataCatalog.get(name).thing_classes
    assert found.id_to_class == MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id
    assert not found.problems and found.evaluable


def test_without_masks_everything_else_is_the_same(tmp_path):
    content = coco_content()
    content["annotations"][0]["segmentation"] = [[5.5, 7, 26, 7, 26, 22]]
    content["annotations"][1]["segmentation"] = [[1, 2]]
    path = write(tmp_path, content)
    whole, bare = (load_coco_set(path, "images", masks=masks) for masks in (True, False))
    assert "segmentation" in whole.records[0]["annotations"][0]
    for record in whole.records:
        for annotation in record["annotations"]:
            annotation.pop("segmentation", None)
    assert bare.records == whole.records
    assert counts(bare.problems) == counts(whole.problems)
    assert list(counts(bare.problems).values()) == [1]


def test_category_ids_may_be_sparse_and_in_any_order(tmp_path):
    found = load(tmp_path, lambda content: content["categories"].reverse())
    assert found.classes == ["box", "ball"] and found.id_to_class == {3: 0, 7: 1}


def test_classes_of_another_file_are_matched_by_name(tmp_path):
    found = load(tmp_path, classes=["ball", "box"])
    assert found.id_to_class == {3: 1, 7: 0}
    assert [r["annotations"][0]["category_id"] for r in found.records[:2]] == [1, 0]
    assert not found.evaluable


@pytest.mark.parametrize(
    ("classes", "message"),
    [(["box"], r"only here \['ball'\]"), (["box", "ball", "cat"], r"only there \['cat'\]")],
)
def test_other_names_are_refused(tmp_path, classes, message):
    with pytest.raises(ValueError, match=rf"a\.json .*{message}"):
        load(tmp_path, classes=classes)


NO_MASK = "objects whose mask has no polygon of three points and is no run-length code"
BAD_ANNOTATIONS = {
    "annotations of images that the file does not list": {"image_id": 999},
    "annotations of categories that the file does not list": {"category_id": 5},
    "boxes that are not four finite numbers": {"bbox": [1, 2, float("nan"), 4]},
    "boxes without area": {"bbox": [1, 2, 0, 4]},
    "boxes outside their image": {"bbox": [500, 2, 10, 4]},
    NO_MASK: {"segmentation": [[1, 2, 3, 4]]},
}


@pytest.mark.parametrize(("kind", "change"), BAD_ANNOTATIONS.items())
def test_bad_annotations_are_left_out_and_counted(tmp_path, kind, change):
    found = load(tmp_path, lambda content: content["annotations"][0].update(change))
    assert counts(found.problems) == {f"{kind}, left out": 1}
    assert [len(r["annotations"]) for r in found.records] == [0, 1, 1, 1, 1, 1, 1]
    assert not found.evaluable
    ((_, problem),) = found.problems.items()
    assert problem.examples == [f"annotation 1 of image {change.get('image_id', 10)}"]


@pytest.mark.parametrize(
    "box", [None, [], [1, 2, 3], [1, 2, 3, "4"], "box", [1, 2, float("inf"), 4], {"x": 1}]
)
def test_boxes_of_another_form_are_left_out(tmp_path, box):
    found = load(tmp_path, lambda content: content["annotations"][0].update(bbox=box))
    assert counts(found.problems) == {"boxes that are not four finite numbers, left out": 1}


@pytest.mark.parametrize(
    "code",
    [
        {"counts": "abc"},
        {"size": [60, 40]},
        {"size": [60], "counts": [60]},
        {"size": [60, -40], "counts": "abc"},
        {"size": [60, 40], "counts": [100, 50]},
        {"size": [60, 40], "counts": [2405, -5]},
        {"size": [60, 40], "counts": None},
    ],
)
@pytest.mark.parametrize("masks", [True, False])
def test_run_length_codes_of_another_form_are_left_out(tmp_path, code, masks):
    def change(content):
        content["annotations"][0]["segmentation"] = code

    found = load(tmp_path, change, masks=masks)
    assert counts(found.problems) == {f"{NO_MASK}, left out": 1}


@pytest.mark.parametrize("box", [[1, 2, -5, 4], [1, 2, 5, -4]])
def test_negative_sides_are_no_area(tmp_path, box):
    found = load(tmp_path, lambda content: content["annotations"][0].update(bbox=box))
    assert counts(found.problems) == {"boxes without area, left out": 1}


@pytest.mark.parametrize("box", [[-30, 2, 10, 4], [1, -9, 10, 4], [1, 48, 5, 5], [64, 2, 5, 5]])
def test_boxes_beyond_any_border_are_left_out(tmp_path, box):
    found = load(tmp_path, lambda content: content["annotations"][0].update(bbox=box))
    assert counts(found.problems) == {"boxes outside their image, left out": 1}


def test_boxes_that_reach_beyond_the_image_are_kept_and_counted_from_one_pixel_on(tmp_path):
    def change(content):
        content["annotations"][0]["bbox"] = [-3, 2, 10, 4]
        content["annotations"][1]["bbox"] = [30, 50, 10.5, 10.5]

    found = load(tmp_path, change)
    assert counts(found.problems) == {"boxes that reach beyond their image, clipped": 1}
    assert found.records[0]["annotations"][0]["bbox"] == [-3, 2, 10, 4]


def test_repeated_annotation_ids_are_kept_and_counted(tmp_path):
    found = load(tmp_path, lambda content: content["annotations"][3].update(id=1))
    assert counts(found.problems) == {"annotations with the id of another one, kept": 1}
    assert sum(len(r["annotations"]) for r in found.records) == 7


def test_an_image_listed_twice_is_taken_once(tmp_path):
    found = load(tmp_path, lambda content: content["images"].append(content["images"][2]))
    assert counts(found.problems) == {"images listed twice, taken once": 1}
    assert len(found.records) == 7


def test_two_images_of_one_id_are_refused_if_annotated_and_taken_if_not(tmp_path):
    content = coco_content()
    content["images"][1]["id"] = 10
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=r"a\.json.*0\.png and .*1\.png share the id 10"):
        load_coco_set(path, "images")
    records, problems = load_image_records(path, "images")
    assert len(records) == 7 and not problems


def test_images_without_a_name_or_id_are_left_out_and_counted(tmp_path):
    def change(content):
        del content["images"][0]["file_name"]
        content["images"][1]["id"] = [3]

    found = load(tmp_path, change)
    assert counts(found.problems) == {
        "images without id or file_name, left out": 2,
        "annotations of images that the file does not list, left out": 2,
    }


def test_sizes_that_the_file_lacks_are_read_from_the_images(coco, tmp_path):
    content = coco_content()
    del content["images"][0]["height"]
    content["images"][1]["width"] = 0
    path = write(tmp_path, content)
    found = load_coco_set(path, str(coco / "images"))
    assert [(r["width"], r["height"]) for r in found.records[:2]] == [(64, 48), (40, 60)]
    assert list(counts(found.problems).values()) == [2]


@pytest.mark.parametrize("key", ["area", "iscrowd", "id"])
def test_a_file_that_pycocotools_cannot_evaluate_with_is_known_as_such(tmp_path, key):
    found = load(tmp_path, lambda content: content["annotations"][4].pop(key))
    assert not found.problems and not found.evaluable


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not a complete JSON"),
        ('{"images": [', "not a complete JSON"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin1"), "not a complete JSON"),
        ("[1, 2]", "no list of images"),
        ("3", "no list of images"),
        ('{"images": {}}', "no list of images"),
        ('{"images": [1]}', "no list of images"),
        ('{"images": [], "annotations": []}', "no list of categories"),
        ('{"images": [], "annotations": [], "categories": []}', "no categories"),
        ('{"images": [], "annotations": [], "categories": [{"id": "1"}]}', "integer id and a name"),
    ],
)
def test_what_is_no_coco_file_is_refused_by_name(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"a\.json.*{message}"):
        load_coco_set(write(tmp_path, content), "images")


def test_a_deeply_nested_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.json"):
        load_coco_set(write(tmp_path, "[" * 100_000), "images")


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*gone\.json"):
        read_coco_content(str(tmp_path / "gone.json"), ("images",))


@pytest.mark.parametrize("key", ["id", "name"])
def test_categories_that_cannot_be_told_apart_are_refused(tmp_path, key):
    def change(content):
        content["categories"][1][key] = content["categories"][0][key]

    with pytest.raises(ValueError, match=r"several categories share"):
        load(tmp_path, change)


def test_image_records_come_sorted_by_id_and_need_nothing_but_images(tmp_path):
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 2, "width": 3} for i in (5, 1)]
    records, problems = load_image_records(write(tmp_path, {"images": images}), "root")
    first = {"file_name": "root/1.jpg", "height": 2, "width": 3, "image_id": 1}
    assert records[0] == first and len(records) == 2 and not problems


def test_no_damage_to_the_values_gives_another_error_than_a_value_error(tmp_path):
    draw = random.Random(0)
    odd = [None, -1, 1e400, "x", [], {}, [[]], float("nan"), True, 10**30]
    for _ in range(300):
        content = copy.deepcopy(coco_content())
        for _ in range(draw.randint(1, 4)):
            entry = draw.choice(content[draw.choice(["images", "annotations", "categories"])])
            key = draw.choice(list(entry))
            if draw.random() < 0.3:
                del entry[key]
                if not entry:
                    break
            else:
                entry[key] = draw.choice(odd)
        try:
            found = load_coco_set(write(tmp_path, content), "images")
        except ValueError as error:
            assert "a.json" in str(error)
        else:
            assert len(found.records) <= 7
