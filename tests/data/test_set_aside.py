"""Unreadable unlabeled images are replaced, counted and listed; labeled ones stop the training."""

import os
import stat
from itertools import islice

import pytest
from detectron2.utils.events import EventStorage

from soft_teacher.data import build_labeled_loader, build_unlabeled_loader
from soft_teacher.data.image_files import ImageError
from soft_teacher.data.set_aside import MAX_IN_A_ROW, ReplacingDataset, SetAsideRecorder


class Numbers:
    """A data set whose sample is its index and seed; some indices cannot be read."""

    def __init__(self, size, bad=()):
        self.size, self.bad = size, set(bad)

    def __len__(self):
        return self.size

    def __getitem__(self, request):
        index, seed = request
        if index in self.bad:
            raise ImageError(f"Cannot read the image {index}")
        return {"index": index, "seed": seed}


def files_of(loader, num_batches):
    return [x["weak"]["file_name"] for batch in islice(loader, num_batches) for x in batch]


def damage(coco, *numbers):
    for number in numbers:
        (coco / "images" / f"{number}.png").write_bytes(b"broken")


def test_the_next_readable_image_stands_in_with_the_seed_of_the_place():
    dataset = ReplacingDataset(Numbers(5, bad=(1, 2, 4)))
    assert dataset[0, 7] == {"index": 0, "seed": 7}
    sample = dataset[1, 8]
    assert (sample["index"], sample["seed"]) == (3, 8)
    assert list(sample["set_aside"]) == [1, 2]
    assert dataset[4, 9]["index"] == 0


@pytest.mark.parametrize("size", [3, 2 * MAX_IN_A_ROW])
def test_a_long_run_of_unreadable_images_is_an_error_that_names_one_and_the_key(size):
    dataset = ReplacingDataset(Numbers(size, bad=range(size)))
    number = min(size, MAX_IN_A_ROW)
    with pytest.raises(ImageError, match=rf"^{number} .*image \d+.*DATASETS\.UNLABELED"):
        dataset[0, 0]


def test_each_unreadable_image_is_logged_and_listed_once_also_over_several_runs(tmp_path, caplog):
    path = tmp_path / "new/list.txt"
    for _ in range(2):
        dataset = ReplacingDataset(Numbers(4, bad=(1, 2)))
        batches = [[dataset[i, 0] for i in range(4)] for _ in range(3)]
        with EventStorage() as storage:
            for batch in SetAsideRecorder(batches, path):
                assert all(sample.keys() == {"index", "seed"} for sample in batch)
            assert storage.latest()["unreadable_images"][0] == 2
    assert path.read_text().splitlines() == [f"Cannot read the image {i}" for i in (1, 2)]
    assert caplog.text.count("Another image takes its place") == 4


def test_names_that_are_not_in_utf_8_are_listed_as_they_are(tmp_path, caplog):
    name = os.fsdecode(b"caf\xe9.jpg")
    for _ in range(2):
        list(SetAsideRecorder([[{"set_aside": {0: name}}]], tmp_path / "list.txt"))
    assert (tmp_path / "list.txt").read_bytes() == b"caf\xe9.jpg\n"
    assert r"caf\udce9.jpg. Another image takes its place" in caplog.text


def test_training_goes_on_with_the_same_images_whatever_the_number_of_workers(cfg, coco, tmp_path):
    whole = files_of(build_unlabeled_loader(cfg), 14)
    damage(coco, 2, 5)
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    found = {}
    for workers in (0, 1, 3):
        cfg.DATALOADER.NUM_WORKERS = workers
        found[workers] = files_of(build_unlabeled_loader(cfg), 14)
    assert found[0] == found[1] == found[3]
    # Sorted by id, image 3 follows image 2 and image 6 follows image 5; the rest is as it was.
    stand_in = {"2.png": "3.png", "5.png": "6.png"}
    names = [os.path.basename(x) for x in whole]
    assert [os.path.basename(x) for x in found[0]] == [stand_in.get(x, x) for x in names]
    listed = (tmp_path / "output/unreadable_images_rank0.txt").read_text()
    assert listed.count("2.png") == listed.count("5.png") == 1 and len(listed.splitlines()) == 2


def test_missing_unlabeled_images_are_announced_at_the_start(cfg, coco, caplog):
    (coco / "images/4.png").unlink()
    build_unlabeled_loader(cfg)
    assert "1 of the 7 unlabeled images are missing" in caplog.text and "4.png" in caplog.text


def test_a_missing_labeled_image_is_refused_at_the_start_by_name(cfg, coco):
    (coco / "images/4.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 7 images are missing \(.*4\.png\).*image_root"):
        build_labeled_loader(cfg)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_labeled_image_stops_with_its_name(cfg, coco, workers):
    damage(coco, 0, 1, 2, 3, 4, 5, 6)
    cfg.DATALOADER.NUM_WORKERS = workers
    with pytest.raises(ImageError, match=r"Cannot read the image .*\.png"):
        next(iter(build_labeled_loader(cfg)))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_image_without_permission_is_set_aside(cfg, coco):
    (coco / "images/1.png").chmod(0)
    names = [os.path.basename(x) for x in files_of(build_unlabeled_loader(cfg), 7)]
    assert "1.png" not in names


def test_a_file_that_the_system_refuses_is_an_image_error_with_its_reason(coco, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", "x")

    monkeypatch.setattr("soft_teacher.data.image_files.PathManager.open", refuse)
    from soft_teacher.data.image_files import read_image

    with pytest.raises(ImageError, match=r"0\.png: Permission denied"):
        read_image(str(coco / "images/0.png"), "RGB")
    assert stat.S_ISREG((coco / "images/0.png").stat().st_mode)
