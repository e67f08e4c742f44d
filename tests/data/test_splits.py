import copy
import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from soft_teacher.data.split_files import read_split_file
from soft_teacher.data.splits import SplitWriter, choose_labeled, split_name

TOOL = Path(__file__).parents[2] / "tools" / "split_dataset.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("split_dataset", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def content():
    """200 images in no order, each with as many objects as its id has units."""
    ids = [(i * 77) % 200 + 1000 for i in range(200)]
    return {
        "info": {"year": 2021},
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 1, "width": 1} for i in ids],
        "annotations": [
            {"id": 10 * i + k, "image_id": i, "category_id": 1} for i in ids for k in range(i % 10)
        ],
    }


@pytest.mark.parametrize(
    ("percent", "count"), [(0.1, 118), (1, 1182), (2, 2365), (5, 5914), (10, 11828), (29, 34303)]
)
def test_counts_are_those_of_the_official_protocol(percent, count):
    assert len(choose_labeled(list(range(118287)), percent, 1)) == count


def test_at_least_one_image_is_labeled_and_whole_counts_are_exact():
    assert len(choose_labeled(list(range(20)), 0.5, 1)) == 1
    assert len(choose_labeled(list(range(100)), 29, 1)) == 29


def test_the_choice_depends_on_percent_fold_and_ids_but_not_on_their_order():
    ids = list(range(500, 1500))
    first = choose_labeled(ids, 10, 1)
    assert first == choose_labeled(ids[::-1], 10, 1)
    assert first != choose_labeled(ids, 10, 2)
    assert choose_labeled(ids, 5, 1) < first <= set(ids)


def test_the_choice_is_the_same_on_every_machine():
    assert choose_labeled(list(range(100)), 5, 1) == {80, 84, 33, 81, 93}


@pytest.mark.parametrize("percent", [0, -1, 100, 250])
def test_a_senseless_percentage_is_refused(percent):
    with pytest.raises(ValueError, match="between 0 and 100"):
        choose_labeled([1, 2, 3], percent, 1)


@pytest.mark.parametrize("ids", [[1], [1, 2, 2]])
def test_ids_that_cannot_be_split_are_refused(ids):
    images = [{"id": i, "file_name": "a"} for i in ids]
    with pytest.raises(ValueError, match="own id"):
        SplitWriter({"images": images, "annotations": []})


def read(path):
    return json.loads(path.read_text())


def test_parts_are_disjoint_and_complete(content, tmp_path):
    original = copy.deepcopy(content)
    writer = SplitWriter(content)
    labeled_ids = choose_labeled(writer.image_ids, 10, 3)
    paths = writer.write(labeled_ids, tmp_path, "x", keep_annotations=True)
    labeled, unlabeled = map(read, paths)
    for key in ("images", "annotations"):
        together = sorted(labeled[key] + unlabeled[key], key=lambda x: x["id"])
        assert together == sorted(original[key], key=lambda x: x["id"])
    found = [{image["id"] for image in part["images"]} for part in (labeled, unlabeled)]
    assert found[0] == labeled_ids and not found[0] & found[1]
    for part, ids in zip((labeled, unlabeled), found, strict=True):
        assert {item["image_id"] for item in part["annotations"]} <= ids
        assert part["categories"] == original["categories"] and part["info"] == original["info"]
    assert list(paths.values()) == [20, 180]


def test_unlabeled_parts_lose_their_annotations_unless_asked_otherwise(content, tmp_path):
    _, unlabeled = map(read, SplitWriter(content).write({1000}, tmp_path, "x"))
    assert unlabeled["annotations"] == [] and len(unlabeled["images"]) == 199


def test_the_bytes_of_a_split_do_not_depend_on_the_order_in_the_file(content, tmp_path):
    shuffled = copy.deepcopy(content)
    random = np.random.default_rng(0)
    for key in ("images", "annotations"):
        shuffled[key] = [shuffled[key][i] for i in random.permutation(len(shuffled[key]))]
    for name, version in (("a", content), ("b", shuffled)):
        (tmp_path / name).mkdir()
        SplitWriter(version).write({1001, 1008}, tmp_path / name, "x")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_ids_and_checksums_lie_beside_the_split(content, tmp_path):
    SplitWriter(content).write({1008, 1001}, tmp_path, "x")
    assert (tmp_path / "x.ids.txt").read_text() == "1001\n1008\n"
    sums = dict(line.split("  ")[::-1] for line in (tmp_path / "x.sha256").read_text().splitlines())
    assert set(sums) == {"x.json", "x-unlabeled.json", "x.ids.txt"}
    for name, expected in sums.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == expected


def test_a_file_of_lists_alone_is_valid_json_too(tmp_path):
    images = [{"id": i, "file_name": "a"} for i in (1, 2)]
    paths = SplitWriter({"images": images, "annotations": []}).write({1}, tmp_path, "x")
    assert [read(path)["annotations"] for path in paths] == [[], []]


@pytest.mark.parametrize(("percent", "text"), [(0.5, "2@0.5"), (10.0, "2@10"), (1, "2@1")])
def test_percentages_are_written_without_needless_digits(percent, text):
    assert split_name(percent, 2) == text


def test_the_tool_writes_every_fold_and_percentage_and_the_same_bytes_again(
    tool, tmp_path, content, capsys
):
    (tmp_path / "data.json").write_text(json.dumps(content))
    tool.main([str(tmp_path / "data.json")])
    files = sorted((tmp_path / "semi_supervised").iterdir())
    assert len(files) == 5 * 4 * 4
    assert "data.1@10.json: 20 images" in capsys.readouterr().out
    tool.main([str(tmp_path / "data.json"), "--output", str(tmp_path / "again")])
    for file in files:
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_the_tool_takes_percentages_folds_and_keeps_annotations_when_asked(tool, tmp_path, content):
    (tmp_path / "data.json").write_text(json.dumps(content))
    options = ["--percent", "0.5", "--fold", "7", "--output", str(tmp_path), "--keep-annotations"]
    tool.main([str(tmp_path / "data.json"), *options])
    labeled, unlabeled = (read(tmp_path / f"data.7@0.5{end}.json") for end in ("", "-unlabeled"))
    assert len(labeled["images"]) == 1 and len(unlabeled["images"]) == 199
    assert len(labeled["annotations"]) + len(unlabeled["annotations"]) == 900


def test_the_tool_takes_over_a_coco_file_of_labeled_images(tool, tmp_path, content):
    (tmp_path / "data.json").write_text(json.dumps(content))
    theirs = {"images": [{"id": 1004}, {"id": 1002}], "annotations": [{"image_id": 1004}]}
    (tmp_path / "data.3@1.json").write_text(json.dumps(theirs))
    arguments = [str(tmp_path / "data.json"), "--from", str(tmp_path / "data.3@1.json")]
    tool.main([*arguments, "--output", str(tmp_path / "out")])
    labeled = read(tmp_path / "out/data.3@1.json")
    assert [image["id"] for image in labeled["images"]] == [1002, 1004]
    # The annotations are those of the file that is split.
    assert len(labeled["annotations"]) == 6


def test_unbiased_teachers_indices_count_images_with_an_object(tool, tmp_path, content):
    # Ids that end in 0 have no object; the only objects of 1001 are a crowd.
    for item in content["annotations"]:
        item["iscrowd"] = int(item["image_id"] == 1001)
    (tmp_path / "data.json").write_text(json.dumps(content))
    table = {"0.5": {"1": [0]}, "1.0": {"1": [3, 0, 8], "2": [1]}}
    (tmp_path / "COCO_supervision.txt").write_text(json.dumps(table))
    arguments = [str(tmp_path / "data.json"), "--from", str(tmp_path / "COCO_supervision.txt")]
    tool.main([*arguments, "--percent", "1", "--fold", "1", "2", "--output", str(tmp_path / "out")])
    # Annotated: 1002 ... 1009, 1011 ...
    assert (tmp_path / "out/data.1@1.ids.txt").read_text().split() == ["1002", "1005", "1011"]
    assert (tmp_path / "out/data.2@1.ids.txt").read_text().split() == ["1003"]


@pytest.mark.parametrize("text", ["7, 3,\n12", "7\n3\n12\n", "[7, 3, 12]", '["7", "3", "12"]'])
def test_lists_of_ids_come_in_several_forms(tmp_path, text):
    (tmp_path / "ids.txt").write_text(text)
    assert read_split_file(tmp_path / "ids.txt", [], [1], [1]) == {None: {3, 7, 12}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("some words", "neither a COCO file"),
        ('{"1.0": {"1": [9]}}', "index 9, but only 3 images"),
        ('{"2.0": {"1": [0]}}', r"no split of 1 % with the seed 1; it has \{'2.0': \['1'\]\}"),
        ('{"info": 3}', "no split of 1 %"),
    ],
)
def test_what_is_no_split_is_refused_by_file(tmp_path, text, message):
    (tmp_path / "odd.txt").write_text(text)
    with pytest.raises(ValueError, match=rf"odd\.txt .*{message}"):
        read_split_file(tmp_path / "odd.txt", [1, 2, 3], [1], [1])


def test_ids_of_another_file_are_refused(content, tmp_path):
    with pytest.raises(ValueError, match=r"2 ids of the split x .* \[5, 7\]"):
        SplitWriter(content).write({5, 7, 1000}, tmp_path, "x")
