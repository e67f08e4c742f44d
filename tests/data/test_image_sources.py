"""Folders, patterns and lists of images, and the cache of their sizes."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from soft_teacher.data import image_sizes as sizes_module
from soft_teacher.data.image_sizes import cache_file, image_sizes
from soft_teacher.data.image_sources import find_images, load_image_source


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def folder(tmp_path):
    """b.jpg, sub/a.PNG and sub/deeper/é.webp, and files that are no images."""
    root = tmp_path / "images"
    (root / "sub/deeper").mkdir(parents=True)
    for i, name in enumerate(("b.jpg", "sub/a.PNG", "sub/deeper/é.webp")):
        Image.new("RGB", (10 + i, 5)).save(root / name)
    for name in ("notes.txt", "sub/._a.png", "sub/.hidden.jpg", "labels.json"):
        (root / name).write_text("x")
    return root


def names(paths, root):
    return [str(Path(path).relative_to(root)) for path in paths]


def test_a_folder_is_searched_recursively_in_an_order_of_its_own(folder):
    expected = ["b.jpg", "sub/a.PNG", "sub/deeper/é.webp"]
    assert names(find_images(str(folder)), folder) == expected


def test_linked_folders_are_searched_too(folder, tmp_path):
    (tmp_path / "other").mkdir()
    Image.new("RGB", (3, 3)).save(tmp_path / "other/z.png")
    (folder / "link").symlink_to(tmp_path / "other")
    assert "link/z.png" in names(find_images(str(folder)), folder)


def test_a_pattern_takes_the_images_that_it_names(folder):
    assert names(find_images(f"{folder}/*"), folder) == ["b.jpg"]
    assert names(find_images(f"{folder}/**/*.webp"), folder) == ["sub/deeper/é.webp"]


def test_a_list_is_taken_in_its_order_from_its_own_folder(folder):
    (folder / "list.txt").write_text("# mine\nsub/a.PNG\n\n  b.jpg  \nsub/a.PNG\n")
    assert names(find_images(str(folder / "list.txt")), folder) == ["sub/a.PNG", "b.jpg"]


def test_a_name_with_the_signs_of_a_pattern_is_still_a_folder(tmp_path):
    root = tmp_path / "images [1]*"
    root.mkdir()
    Image.new("RGB", (3, 3)).save(root / "a.png")
    assert names(find_images(str(root)), root) == ["a.png"]


@pytest.mark.parametrize("source", ["nowhere", "nowhere.txt", "nowhere/*.jpg", "empty"])
def test_a_source_without_images_is_refused_by_key_and_name(tmp_path, source):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=rf"DATASETS\.CUSTOM .*{source.split('*')[0]}"):
        find_images(str(tmp_path / source))


def test_records_have_ids_sizes_and_keep_what_cannot_be_read(folder):
    (folder / "c.jpg").write_bytes(b"broken")
    records = load_image_source(str(folder))
    assert [(r["image_id"], r.get("height"), r.get("width")) for r in records] == [
        (1, 5, 10),
        (2, None, None),
        (3, 5, 11),
        (4, 5, 12),
    ]
    assert records[1]["file_name"].endswith("c.jpg")


def test_sizes_are_read_once_and_again_only_when_a_file_changes(folder, monkeypatch):
    paths = find_images(str(folder))
    first = image_sizes(paths)
    read = []
    original = sizes_module.read_image_size
    monkeypatch.setattr(
        sizes_module, "read_image_size", lambda name: read.append(name) or original(name)
    )
    assert image_sizes(paths) == first and read == []
    Image.new("RGB", (77, 33)).save(paths[0])
    os.utime(paths[0], ns=(1, 1))
    assert image_sizes(paths) == {**first, paths[0]: (33, 77)} and read == [paths[0]]


def test_a_damaged_cache_is_made_anew(folder):
    paths = find_images(str(folder))
    first = image_sizes(paths)
    path = cache_file(str(folder))
    path.write_text(path.read_text()[:-5])
    assert image_sizes(paths) == first
    assert json.loads(path.read_text()).keys() == {"b.jpg"}


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(28, "No space left on device")]
)
def test_a_cache_that_cannot_be_written_is_done_without(folder, monkeypatch, caplog, error):
    def refuse(path, known):
        raise error

    monkeypatch.setattr(sizes_module, "_write_cache", refuse)
    read_one, read = sizes_module.read_image_size, []
    monkeypatch.setattr(
        sizes_module, "read_image_size", lambda path: read.append(path) or read_one(path)
    )
    sizes = image_sizes(find_images(str(folder)))
    assert len(read) == len(sizes)
    assert sorted(sizes.values()) == [(5, 10), (5, 11), (5, 12)]
    assert "not cached" in caplog.text


def test_a_place_that_is_no_folder_is_done_without(folder, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(image_sizes(find_images(str(folder)))) == 3
    assert "not cached" in caplog.text


def test_a_list_may_begin_with_the_mark_of_its_encoding(tmp_path):
    (tmp_path / "list.txt").write_text("a.jpg\n", encoding="utf-8-sig")
    assert find_images(str(tmp_path / "list.txt")) == [str(tmp_path / "a.jpg")]


def test_a_list_in_another_encoding_is_refused_by_name(tmp_path):
    (tmp_path / "list.txt").write_bytes("caf\u00e9.jpg".encode("latin1"))
    with pytest.raises(ValueError, match=r"list\.txt is not in UTF-8 .* at byte 3"):
        find_images(str(tmp_path / "list.txt"))
