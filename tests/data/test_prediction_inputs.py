"""What people name to have objects found in is sorted out."""

import pytest

from soft_teacher.data.prediction_inputs import find_inputs


@pytest.fixture
def folder(tmp_path):
    for name in ("b.JPG", "a.png", "deep/c.webp", "deep/clip.MP4", "deep/notes.md", "d [1].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text("# mine\ndeep/c.webp\nodd_name\n")
    return tmp_path


@pytest.mark.parametrize(
    ("named", "images", "videos"),
    [
        (["b.JPG", "a.png"], ["b.JPG", "a.png"], []),
        (["."], ["a.png", "b.JPG", "d [1].png", "deep/c.webp"], []),
        (["**/*.webp", "deep/clip.MP4"], ["deep/c.webp"], ["deep/clip.MP4"]),
        (["list.txt"], ["deep/c.webp", "odd_name"], []),
        # What is there is no pattern, and what is named twice is looked at once.
        (["d [1].png", "a.png", "*.png"], ["d [1].png", "a.png"], []),
    ],
)
def test_images_and_videos_come_in_the_order_in_which_they_are_named(
    folder, monkeypatch, named, images, videos
):
    monkeypatch.chdir(folder)
    found = find_inputs(named)
    assert [x.removeprefix("./") for x in found.images] == images
    assert found.videos == videos


@pytest.mark.parametrize("name", ["nowhere.jpg", "nowhere.mp4", "deep/notes.md", "*.tiff"])
def test_what_is_not_there_is_refused_by_name(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match="is no image, no folder, pattern or text list") as error:
        find_inputs([name])
    assert repr(name) in str(error.value)
