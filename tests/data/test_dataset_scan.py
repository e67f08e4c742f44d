"""Every kind of bad image and annotation is found, named and counted, and nothing else is."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from bad_images import (
    ANNOTATION_PROBLEMS,
    CAN_LOCK_FILES,
    EVIL,
    HEIGHT,
    MODES,
    NON_ASCII,
    READABLE,
    UNREADABLE,
    WIDTH,
    photo,
    write_annotations,
    write_images,
)
from soft_teacher.data import build_labeled_loader
from soft_teacher.data.dataset_check import check_config, check_files
from soft_teacher.data.dataset_findings import (
    LOOK,
    NOTE,
    STOPS,
    unreadable_run_findings,
)
from soft_teacher.data.dataset_scan import scan_image, scan_images, scan_pool
from soft_teacher.data.image_files import ImageError
from soft_teacher.data.set_aside import MAX_IN_A_ROW, ReplacingDataset
from soft_teacher.data.set_statistics import image_statistics, object_statistics

LOCKED = ["locked.jpg"] if CAN_LOCK_FILES else []


@pytest.fixture
def bad(tmp_path, monkeypatch):
    """Folder with images/ and annotations.json, both bad in every way."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    write_images(tmp_path / "images")
    write_annotations(tmp_path / "annotations.json")
    return tmp_path


def check_annotated(folder, pool=None):
    return check_files(str(folder / "annotations.json"), str(folder / "images"), pool)


def by_kind(findings):
    kinds = [finding.kind for finding in findings]
    assert len(set(kinds)) == len(kinds)
    return {finding.kind: finding for finding in findings}


def names_in(places):
    """The file that each place names first."""
    return [
        next(x for x in ("missing.jpg", *UNREADABLE, *READABLE, "locked.jpg") if f"/{x}" in place)
        for place in places
    ]


def test_every_bad_image_of_an_annotated_set_is_found_under_its_kind(bad):
    data = check_annotated(bad)
    (checked,) = data.sets
    found = by_kind(checked.findings)
    expected = {
        "missing images": (STOPS, ["missing.jpg"]),
        "unreadable images": (STOPS, [*UNREADABLE, *LOCKED]),
        "images of another size than stated": (STOPS, ["resized.png"]),
        "images under 10 pixels a side": (LOOK, ["dot.png"]),
        "images turned by their EXIF tag": (NOTE, ["turned.jpg"]),
        "images whose EXIF tag is passed over": (NOTE, ["lying.jpg"]),
        "gray images": (NOTE, ["gray.png", "gray.png"]),
        "palette images": (NOTE, ["palette.png"]),
        "alpha images": (NOTE, ["alpha.png"]),
        "CMYK images": (NOTE, ["cmyk.jpg"]),
        "16-bit images": (NOTE, ["sixteen.png"]),
        "images without an object": (LOOK, ["gray.png"]),
        "images that are copies of another one in the set": (LOOK, ["good.jpg", "gray.png"]),
    }
    for kind, (level, names) in expected.items():
        finding = found.pop(kind)
        assert (finding.level, names_in(finding.places)) == (level, names), kind
        assert finding.count == len(names), kind
    for kind, count in ANNOTATION_PROBLEMS.items():
        finding = found.pop(kind)
        assert (finding.level, finding.count) == (LOOK, count), kind
    assert found.pop("crowd annotations").count == 1
    assert found.pop("classes without an object").places == ["<script>never"]
    assert not found
    assert data.stops_training


def test_an_unreadable_image_comes_with_its_reason(bad):
    found = by_kind(check_annotated(bad).sets[0].findings)
    empty, truncated, text = found["unreadable images"].places[:3]
    assert "empty.jpg" in empty
    assert "truncated.jpg" in truncated and "truncated" in truncated
    assert "text.jpg" in text and "format" in text
    assert "No such file" in found["missing images"].places[0]
    (place,) = found["images of another size than stated"].places
    assert place.endswith("resized.png: 20 x 15, stated 40 x 30")
    folder = bad / "images"
    assert found["images that are copies of another one in the set"].places == [
        f"{folder / 'good.jpg'} = {folder / 'copy.jpg'}",
        f"{folder / 'gray.png'} (2 times)",
    ]
    if CAN_LOCK_FILES:
        assert "Permission denied" in found["unreadable images"].places[-1]


def test_a_set_of_images_alone_loses_the_unreadable_ones_and_goes_on(bad):
    data = check_files(None, str(bad / "images"), None)
    (checked,) = data.sets
    found = by_kind(checked.findings)
    finding = found["unreadable images"]
    assert (finding.level, sorted(names_in(finding.places))) == (
        LOOK,
        sorted([*UNREADABLE, *LOCKED]),
    )
    assert found["images turned by their EXIF tag"].count == 2
    assert {"missing images", "images of another size than stated"}.isdisjoint(found)
    assert checked.readable == len(READABLE)
    assert not data.stops_training
    assert str(bad / "images" / NON_ASCII) in {x["file_name"] for x in checked.records}


def test_the_number_of_workers_changes_nothing(bad):
    alone = check_annotated(bad)
    with scan_pool(2) as pool:
        together = check_annotated(bad, pool)
        pids = {*pool.map(_pid, range(20))}
    assert os.getpid() not in pids
    assert together == alone


def _pid(_):
    return os.getpid()


def test_a_size_that_differs_because_of_the_tag_says_so(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    photo().save(tmp_path / "turned.jpg", exif=exif)
    content = {
        "images": [{"id": 1, "file_name": "turned.jpg", "width": WIDTH + 1, "height": HEIGHT}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}],
        "categories": [{"id": 1, "name": "a"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = check_files(str(tmp_path / "a.json"), str(tmp_path), None)
    (place,) = by_kind(data.sets[0].findings)["images of another size than stated"].places
    assert place.endswith("turned.jpg: 30 x 40, turned by its EXIF tag, stated 41 x 30")


@pytest.mark.parametrize(("width", "height"), [(12_001, 3), (10_001, 10_000)])
def test_very_large_images_are_found(tmp_path, monkeypatch, width, height):
    monkeypatch.setattr(
        "soft_teacher.data.dataset_scan.read_image",
        lambda *_: np.broadcast_to(np.uint8(0), (height, width, 3)),
    )
    photo().save(tmp_path / "a.png")
    (checked,) = check_files(None, str(tmp_path), None).sets
    kind = "images over 12,000 pixels a side or 100 megapixels"
    assert by_kind(checked.findings)[kind].places == [str(tmp_path / "a.png")]


def test_an_image_of_more_pixels_than_the_config_allows_is_unreadable_and_no_warning_is_shown(
    tmp_path, monkeypatch, recwarn
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    photo(10, 12).save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    assert scan_image(path, None, 120).size == (12, 10)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert "10 x 12 pixels, more than INPUT.MAX_PIXELS (119)" in scan_image(path, None, 119).error
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    assert "far beyond INPUT.MAX_PIXELS" in scan_image(path, None, 59).error
    assert not recwarn.list


def test_the_pixel_limit_of_the_config_reaches_the_check(cfg):
    cfg.INPUT.MAX_PIXELS = 60 * 45
    labeled, unlabeled = check_config(cfg, None).sets
    for checked, level in ((labeled, STOPS), (unlabeled, LOOK)):
        finding = by_kind(checked.findings)["unreadable images"]
        # 64 x 48, 72 x 40, 44 x 66 and 48 x 64 are larger.
        assert (finding.level, finding.count) == (level, 4)
        assert all("INPUT.MAX_PIXELS (2700)" in place for place in finding.places)


def test_other_classes_of_an_unlabeled_set_stop_nothing(cfg, tmp_path):
    """As training does without its annotations, but for measuring pseudo labels."""
    entry = next(x for x in cfg.DATASETS.CUSTOM if x[0] == cfg.DATASETS.TRAIN[0])
    content = json.loads(Path(entry[1]).read_text())
    content["categories"][0]["name"] = "cat"
    (tmp_path / "other.json").write_text(json.dumps(content))
    name = f"classes_{tmp_path.name}"
    cfg.DATASETS.CUSTOM += [[name, str(tmp_path / "other.json"), entry[2]]]
    cfg.DATASETS.UNLABELED = (name,)
    data = check_config(cfg, None)
    found = by_kind(data.sets[1].findings)["annotations of other classes or another form"]
    assert found.level == LOOK and "only here ['cat']" in found.places[0]
    findings = [*data.together, *(x for checked in data.sets for x in checked.findings)]
    assert STOPS not in {x.level for x in findings}


def test_two_workers_on_two_sets_keep_the_order_of_the_records(tmp_path):
    records = []
    for i in range(30):
        photo(20 + i, 10, i).save(tmp_path / f"{i}.png")
        records.append({"file_name": str(tmp_path / f"{i}.png")})
    with scan_pool(2) as pool:
        for order in (records, records[::-1]):
            widths = [x.size[1] for x in scan_images(order, pool, "", False)]
            assert widths == [20 + int(Path(r["file_name"]).stem) for r in order]


def test_what_stops_training_is_what_the_labeled_loader_trips_over(cfg, coco):
    """Images that the check calls harmless are never read, one that it calls harmful ends it."""
    path = coco / "annotations.json"
    content = json.loads(path.read_text())
    del content["annotations"][0]
    path.write_text(json.dumps(content))
    (coco / "images/0.png").write_bytes(b"no image")
    cfg.SOFT_TEACHER.ENABLED = False
    data = check_config(cfg, None)
    found = by_kind(data.sets[0].findings)
    assert not data.stops_training
    assert found["unreadable images that are left out"].level == NOTE
    loader = iter(build_labeled_loader(cfg))
    for _ in range(8):
        next(loader)

    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    data = check_config(cfg, None)
    assert data.stops_training
    assert by_kind(data.sets[0].findings)["unreadable images"].count == 1
    loader = iter(build_labeled_loader(cfg))
    with pytest.raises(ImageError, match=r"0\.png"):
        for _ in range(8):
            next(loader)


def test_what_training_refuses_is_refused_in_its_words(cfg, coco):
    assert not check_config(cfg, None).stops_training
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    (finding,) = [x for x in check_config(cfg, None).together if x.level == STOPS]
    assert finding.kind == "refused"
    assert "MODEL.ROI_HEADS.NUM_CLASSES is 3" in finding.places[0]
    with pytest.raises(ValueError) as error:
        build_labeled_loader(cfg)
    assert finding.places == [str(error.value)]


def test_a_broken_annotation_file_is_refused_once_and_its_images_are_looked_at_if_it_has_any(
    cfg, coco
):
    path = coco / "annotations.json"
    whole = path.read_text()
    content = json.loads(whole)
    content["categories"] = []
    cfg.SOFT_TEACHER.ENABLED = False
    for text, images in ((json.dumps(content), 7), (whole[:-20], 0)):
        path.write_text(text)
        data = check_config(cfg, None)
        (checked,) = data.sets
        assert data.stops_training and not data.together
        assert str(path) in by_kind(checked.findings)["refused"].places[0]
        assert (len(checked.records), checked.objects) == (images, None)


def test_a_name_that_no_set_has_is_refused(cfg):
    cfg.DATASETS.TEST = ("no_such_set",)
    data = check_config(cfg, None)
    (finding,) = data.sets[-1].findings
    assert finding.kind == "refused" and "no_such_set" in finding.places[0]
    cfg.DATASETS.CUSTOM = [["name", "file"]]
    data = check_config(cfg, None)
    assert not data.sets and "DATASETS.CUSTOM has the entry" in data.together[0].places[0]


def test_sets_that_a_function_gives_are_checked_too_and_left_as_they_are(cfg, coco):
    name = f"function_{coco.name}"
    record = {
        "file_name": str(coco / "images/0.png"),
        "image_id": 1,
        "annotations": [{"bbox": [1, 2, 11, 22], "bbox_mode": 0, "category_id": 0}],
    }
    records = [record]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).thing_classes = ["a", "b"]
    cfg.DATASETS.TRAIN, cfg.SOFT_TEACHER.ENABLED = (name,), False
    (checked,) = check_config(cfg, None).sets
    assert [x.objects for x in checked.objects.classes] == [1, 0]
    assert len(record["annotations"]) == 1


def test_images_of_two_roles_are_found_by_path_content_and_looks(cfg, coco, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    images = coco / "images"
    (other / "link.png").symlink_to(images / "0.png")
    (other / "copied.png").write_bytes((images / "1.png").read_bytes())
    photo(50, 50, 77).save(other / "2.png")
    photo(33, 44, 78).save(other / "new.png")
    names = ["link.png", "copied.png", "2.png", "new.png"]
    sizes = [(64, 48), (40, 60), (50, 50), (33, 44)]
    content = {
        "images": [
            {"id": 10 + i, "file_name": name, "width": w, "height": h}
            for i, (name, (w, h)) in enumerate(zip(names, sizes, strict=True))
        ]
    }
    (tmp_path / "other.json").write_text(json.dumps(content))
    unlabeled = f"other_{tmp_path.name}"
    cfg.DATASETS.CUSTOM += [[unlabeled, str(tmp_path / "other.json"), str(other)]]
    cfg.DATASETS.UNLABELED, cfg.DATASETS.TEST = (unlabeled,), cfg.DATASETS.TRAIN
    found = by_kind(check_config(cfg, None).together)
    both = "images both labeled and unlabeled"
    assert found[f"{both}: the same file"].places == [str(other / "link.png")]
    assert found[f"{both}: copies"].places == [f"{other / 'copied.png'} = {images / '1.png'}"]
    assert found[f"{both}: the same id, file name and size, other bytes"].places == [
        str(other / "2.png")
    ]
    assert found["images both labeled and test: the same file"].count == 7
    assert found["images both unlabeled and test: copies"].count == 1
    assert {x.level for x in found.values()} == {LOOK}


@pytest.mark.parametrize(
    ("unreadable", "ends"),
    [
        ([True] * 3, True),
        ([True] * 2 + [False], False),
        ([True] * (MAX_IN_A_ROW - 1) + [False] * 50, False),
        ([True] * MAX_IN_A_ROW + [False], True),
        # The first image follows the last.
        ([True] * 60 + [False] * 9 + [True] * (MAX_IN_A_ROW - 60), True),
        ([], False),
    ],
)
def test_a_run_of_unreadable_images_is_one_that_training_gives_up_on(unreadable, ends):
    class Images:
        def __len__(self):
            return len(unreadable)

        def __getitem__(self, request):
            if unreadable[request[0]]:
                raise ImageError("bad")
            return {}

    dataset, gives_up = ReplacingDataset(Images()), False
    for index in range(len(unreadable)):
        try:
            dataset[index, 0]
        except ImageError:
            gives_up = True
    assert gives_up == ends
    assert [x.level for x in unreadable_run_findings(unreadable)] == [STOPS] * ends


def test_statistics_are_those_of_a_count_by_hand():
    def record(*objects):
        keys = ("category_id", "bbox", "iscrowd", "bbox_mode")
        return {"annotations": [dict(zip(keys, (*x, 1), strict=True)) for x in objects]}

    records = [
        record((0, [0, 0, 32, 32], 0), (0, [0, 0, 31, 33], 0), (1, [0, 0, 96, 96], 0)),
        record((0, [0, 0, 8, 4], 1)),
        record((0, [0, 0, 200, 50], 0)),
    ]
    found = object_statistics(records, ["a", "b", "c"])
    assert (found.objects, found.crowds) == (4, 1)
    counts = [(x.objects, x.images, x.small, x.medium, x.large) for x in found.classes]
    # 31 x 33 is one below 32 x 32, which is medium; 96 x 96 and 200 x 50 are large.
    assert counts == [(3, 2, 1, 1, 1), (1, 1, 0, 0, 1), (0, 0, 0, 0, 0)]
    assert found.objects_per_image.counts == [1, 1, 0, 1]
    assert sum(found.box_sides.counts) == sum(found.box_aspects.counts) == 4
    bins = dict(zip(found.box_aspects.edges, found.box_aspects.counts, strict=False))
    assert bins[1.0] == 2 and bins[4.0] == 1 and bins[2.0**-0.5] == 1
    images = image_statistics([(10, 40), (40, 10), (7, 7)])
    assert dict(zip(images.longer_sides.edges, images.longer_sides.counts, strict=False))[40] == 2
    assert images.shorter_sides.edges == images.longer_sides.edges
    assert sum(images.shorter_sides.counts) == sum(images.aspects.counts) == 3
    assert dict(zip(images.aspects.edges, images.aspects.counts, strict=False))[4.0] == 1


def test_every_mode_of_the_specimens_is_the_file_s_own(bad):
    modes = {name: scan_image(str(bad / "images" / name)).mode for name in MODES}
    assert modes == MODES
    assert scan_image(str(bad / "images" / EVIL)).mode == "RGB"
