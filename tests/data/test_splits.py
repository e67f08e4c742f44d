import importlib.util
import json
from pathlib import Path

import pytest

from soft_teacher.data.splits import choose_labeled, split_annotations, split_paths

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
    with pytest.raises(ValueError, match="own id"):
        choose_labeled(ids, 10, 1)


def test_parts_are_disjoint_and_complete(content):
    labeled_ids = choose_labeled([image["id"] for image in content["images"]], 10, 3)
    labeled, unlabeled = split_annotations(content, labeled_ids, keep_annotations=True)
    for key in ("images", "annotations"):
        assert len(labeled[key]) + len(unlabeled[key]) == len(content[key])
    found = [{image["id"] for image in part["images"]} for part in (labeled, unlabeled)]
    assert found[0] == labeled_ids and not found[0] & found[1]
    for part, ids in zip((labeled, unlabeled), found, strict=True):
        assert {item["image_id"] for item in part["annotations"]} <= ids
        assert part["categories"] == content["categories"] and part["info"] == content["info"]


def test_unlabeled_parts_lose_their_annotations_unless_asked_otherwise(content):
    _, unlabeled = split_annotations(content, {1000}, keep_annotations=False)
    assert unlabeled["annotations"] == [] and len(unlabeled["images"]) == 199


@pytest.mark.parametrize(("percent", "text"), [(0.5, "0.5"), (10.0, "10"), (1, "1")])
def test_percentages_are_written_without_needless_digits(percent, text):
    labeled, unlabeled = split_paths(Path("f"), "stem", percent, 2)
    assert labeled == Path(f"f/stem.2@{text}.json")
    assert unlabeled == Path(f"f/stem.2@{text}-unlabeled.json")


def test_the_tool_writes_every_fold_and_percentage_and_the_same_bytes_again(
    tool, tmp_path, content, capsys
):
    (tmp_path / "data.json").write_text(json.dumps(content))
    tool.main([str(tmp_path / "data.json")])
    files = sorted((tmp_path / "semi_supervised").iterdir())
    assert len(files) == 5 * 4 * 2
    assert "data.1@10.json: 20 images" in capsys.readouterr().out
    tool.main([str(tmp_path / "data.json"), "--output", str(tmp_path / "again")])
    for file in files:
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_the_tool_takes_percentages_folds_and_keeps_annotations_when_asked(tool, tmp_path, content):
    (tmp_path / "data.json").write_text(json.dumps(content))
    options = ["--percents", "0.5", "--folds", "7", "--output", str(tmp_path), "--keep-annotations"]
    tool.main([str(tmp_path / "data.json"), *options])
    labeled = json.loads((tmp_path / "data.7@0.5.json").read_text())
    unlabeled = json.loads((tmp_path / "data.7@0.5-unlabeled.json").read_text())
    assert len(labeled["images"]) == 1 and len(unlabeled["images"]) == 199
    assert len(labeled["annotations"]) + len(unlabeled["annotations"]) == 900
