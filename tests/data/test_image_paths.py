"""An annotation file names images below the image root, and cannot lead anywhere else."""

import json

import pytest

from small_coco import coco_content
from soft_teacher.analysis.prediction_pictures import draw_comparisons
from soft_teacher.data import labeled_records, unlabeled_ground_truth, unlabeled_records
from soft_teacher.data.coco_file import load_coco_set, load_image_records
from soft_teacher.data.dataset_check import check_config, check_files
from soft_teacher.data.dataset_findings import STOPS
from soft_teacher.data.image_paths import image_path
from soft_teacher.data.image_sources import load_image_source
from soft_teacher.data.start_checks import check_test_sets

OUTSIDE = [
    "../secret.png",
    "../../etc/passwd",
    "a/../../secret.png",
    # By the letters this stays inside; where "link" leads elsewhere it does not.
    "link/../secret.png",
    "..",
    "/etc/passwd",
    "//etc/passwd",
    "/data/images/../secret.png",
    "/data/images_of_others/a.png",
    "http://example.com/a.png",
    "file:///etc/passwd",
    "a\0b.png",
    "\ud800.png",
]


def rename_first(coco, name):
    """The small set of the fixture, its first image under another name."""
    content = coco_content()
    content["images"][0]["file_name"] = name
    path = coco / "annotations.json"
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_of_the_root_is_refused_with_file_name_and_remedy(name):
    with pytest.raises(ValueError) as error:
        image_path("/data/images", name, "strange.json")
    message = str(error.value)
    assert message.startswith("strange.json: ") and repr(name) in message
    assert "set the image root to a folder that holds all of them, such as '/'" in message


@pytest.mark.parametrize(
    ("root", "name", "path"),
    [
        ("images", "a.png", "images/a.png"),
        ("images", "deep/er/a.png", "images/deep/er/a.png"),
        ("images", "./a..b/...png", "images/./a..b/...png"),
        ("", "a.png", "a.png"),
        ("/data/images", "/data/images/a.png", "/data/images/a.png"),
        ("/data/images/", "/data/images/deep/a.png", "/data/images/deep/a.png"),
        # The remedy for files of absolute names.
        ("/", "/data/images/a.png", "/data/images/a.png"),
        ("s3://bucket/images", "a.png", "s3://bucket/images/a.png"),
    ],
)
def test_names_below_the_root_are_joined_as_detectron2_does(root, name, path):
    assert image_path(root, name, "a.json") == path


@pytest.mark.parametrize("root", ["", "images", "s3://bucket"])
def test_an_absolute_name_needs_a_root_that_holds_it(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="no path below the image root"):
        image_path(root, str(tmp_path.parent / "a.png"), "a.json")
    inside = tmp_path / root / "a.png"
    if "://" not in root:
        assert image_path(root, str(inside), "a.json") == str(inside)


def test_every_kind_of_set_is_refused_for_one_name_that_leads_out(cfg, coco):
    path = rename_first(coco, "../annotations.json")
    cfg.DATASETS.TEST = cfg.DATASETS.TRAIN
    doors = (labeled_records, unlabeled_records, unlabeled_ground_truth, check_test_sets)
    for read in doors:
        with pytest.raises(ValueError, match=rf"{path}: the file_name '\.\./annotations\.json'"):
            read(cfg)
    for load in (load_coco_set, load_image_records):
        with pytest.raises(ValueError, match="no path below the image root"):
            load(path, str(coco / "images"))
    with pytest.raises(ValueError, match="no path below the image root"):
        draw_comparisons(coco / "annotations.json", coco / "images", {}, num_images=1)


def test_the_check_of_a_data_set_reports_it_and_reads_no_image(cfg, coco):
    path = rename_first(coco, "../annotations.json")
    by_files = check_files(path, str(coco / "images"), None)
    for data in (check_config(cfg, None), by_files):
        for checked in data.sets:
            (finding,) = checked.findings
            assert finding.level == STOPS and not checked.records
            assert "no path below the image root" in finding.places[0]


def test_a_link_below_the_root_may_lead_elsewhere(coco, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (coco / "images/0.png").rename(tmp_path / "elsewhere/0.png")
    (coco / "images/link").symlink_to(tmp_path / "elsewhere")
    path = rename_first(coco, "link/0.png")
    data = check_files(path, str(coco / "images"), None)
    assert not data.stops_training and data.sets[0].readable == 7


def test_a_list_of_the_user_may_name_images_anywhere(coco, tmp_path):
    (tmp_path / "lists").mkdir()
    text = f"{coco}/images/0.png\n../images/1.png\n"
    (tmp_path / "lists/mine.txt").write_text(text)
    records = load_image_source(str(tmp_path / "lists/mine.txt"))
    assert [(x["width"], x["height"]) for x in records] == [(64, 48), (40, 60)]
