"""The folder that predictions are written to."""

import json
import os

import numpy as np
import pytest

from soft_teacher.engine.prediction import Detected
from soft_teacher.engine.prediction_output import PredictionOutput

CATEGORIES = [{"id": 4, "name": "cat"}, {"id": 2, "name": "dog"}]
PICTURE = np.zeros((20, 30, 3), np.uint8)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("photos/street 12.png", "000007_street_12.jpg"),
        ("photos/..jpg", "000007__.jpg"),
        ("\x1b]0;owned\x07$(ls)'\"<b>.png", "000007___0_owned___ls____b_.jpg"),
        ("Straße_日本.jpg", "000007_Straße_日本.jpg"),
        (os.fsdecode(b"caf\xe9.jpg"), "000007_caf_.jpg"),
        ("日" * 80 + ".png", f"000007_{'日' * 40}.jpg"),
    ],
)
def test_a_picture_is_named_after_id_and_letters_whatever_the_name_of_its_file(
    tmp_path, name, expected
):
    output = PredictionOutput(tmp_path / "out", CATEGORIES)
    output.write_picture(PICTURE, name, 7)
    written = [x for x in tmp_path.rglob("*") if x.is_file()]
    assert [str(x.relative_to(tmp_path)) for x in written] == [f"out/pictures/{expected}"]


def test_ids_are_those_of_the_categories_and_the_list_of_images(tmp_path):
    output = PredictionOutput(tmp_path / "out", CATEGORIES)
    found = {"image_id": 5, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}
    odd = os.fsdecode(b"caf\xe9.jpg")
    assert output.add(odd, Detected(5, (20, 30), (found,)), frame_index=3) is None
    drawn = output.add("b.jpg", Detected(6, (20, 30), (), PICTURE))
    assert drawn.shape == PICTURE.shape
    output.unreadable.append("c.jpg")
    output.write({"model": "teacher"})
    images, results = (
        json.loads((tmp_path / f"out/{x}.json").read_text()) for x in ("images", "results")
    )
    assert images == {
        "info": {"model": "teacher", "unreadable": ["c.jpg"]},
        "categories": CATEGORIES,
        "images": [
            {"id": 5, "file_name": odd, "height": 20, "width": 30, "frame_index": 3},
            {"id": 6, "file_name": "b.jpg", "height": 20, "width": 30},
        ],
    }
    assert results == [{**found, "category_id": 2}]
    assert sorted(x.name for x in (tmp_path / "out").iterdir()) == ["images.json", "results.json"]


def test_a_video_that_was_not_finished_does_not_have_its_name(tmp_path):
    output = PredictionOutput(tmp_path / "out", CATEGORIES)
    with pytest.raises(KeyboardInterrupt), output.video("clip.avi", 1, (48, 64), 0) as writer:
        writer.write(np.zeros((48, 64, 3), np.uint8))
        raise KeyboardInterrupt
    names = [x.name for x in (tmp_path / "out/videos").iterdir()]
    assert names == ["unfinished_000001_clip.mp4"]


def test_a_file_in_the_place_of_the_folder_is_not_overwritten(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="is there and not empty"):
        PredictionOutput(tmp_path / "out", CATEGORIES)
    assert (tmp_path / "out").read_text() == "mine"
