"""The report on data says what was found, in numbers, pictures and words, and runs no code."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from bad_images import ANNOTATION_PROBLEMS, EVIL, UNREADABLE, write_annotations, write_images
from soft_teacher.analysis.dataset_report import build_json, build_report, summary
from soft_teacher.analysis.histograms import HistogramPicture, plot_histogram
from soft_teacher.data.dataset_check import CheckedData, check_files
from soft_teacher.data.dataset_findings import LOOK, NOTE, STOPS, Finding
from soft_teacher.data.set_statistics import Histogram


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    (folder / "images").mkdir()
    write_images(folder / "images")
    write_annotations(folder / "annotations.json")
    return check_files(str(folder / "annotations.json"), str(folder / "images"), None)


def with_findings(*findings):
    return CheckedData([], list(findings))


def test_the_page_names_every_finding_with_its_count_and_level(data):
    page = build_report(data)
    shown = re.findall(r'<b>([\d,]+)</b> ([^<]+)<span class="tag [a-z]*">([^<]+)<', page)
    expected = [(f"{x.count:,}", x.kind, x.level) for x in data.sets[0].findings]
    assert sorted(shown) == sorted(expected)
    # What stops training comes first, and is open.
    levels = [(STOPS, LOOK, NOTE).index(level) for _, _, level in shown]
    assert levels == sorted(levels)
    assert page.count("<details open>") == levels.count(0) == 3
    for name in UNREADABLE:
        assert name in page


def test_names_from_the_data_cannot_become_code(data):
    page = build_report(data)
    assert "<script" not in page
    assert "&lt;script&gt;never" in page
    evil = Finding("bad", LOOK, 1, "do this", [f"/folder/{EVIL}\n</pre><script>"])
    page = build_report(with_findings(evil))
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;b&gt;.png\\n&lt;/pre&gt;" in page


def test_the_page_needs_no_other_file_and_has_the_pictures(data):
    page = build_report(data)
    sources = re.findall(r"(?:src|href)=\"([^\"]{0,20})", page)
    assert len(sources) == 5 and all(x.startswith("data:image/png") for x in sources)
    for encoded in re.findall(r"base64,([^\"]+)", page):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))).convert("L"))
        assert (pixels < 200).mean() > 0.02


def test_the_numbers_are_complete_where_the_page_shows_a_few():
    places = [f"image {i}" for i in range(57)]
    data = with_findings(Finding("odd images", LOOK, 57, "look", places))
    page = build_report(data)
    assert "image 19\n... and 37 more" in page and "image 20" not in page
    content = json.loads(json.dumps(build_json(data), allow_nan=False))
    assert content["together"] == [
        {"kind": "odd images", "level": LOOK, "count": 57, "advice": "look", "places": places}
    ]


def test_a_long_group_of_copies_is_cut_short_on_the_page_alone():
    group = " = ".join(f"image {i}" for i in range(1000))
    data = with_findings(Finding("copies", LOOK, 999, "look", [group]))
    assert "image 3 = " in build_report(data) and "image 999" not in build_report(data)
    assert build_json(data)["together"][0]["places"] == [group]


def test_the_numbers_hold_findings_and_statistics_of_every_set(data):
    content = json.loads(json.dumps(build_json(data), allow_nan=False))
    assert content["stops_training"] is True
    (found,) = content["sets"]
    by_kind = {x["kind"]: x["count"] for x in found["findings"]}
    assert ANNOTATION_PROBLEMS.items() <= by_kind.items()
    assert found["images"] - found["readable_images"] == (
        by_kind["missing images"] + by_kind["unreadable images"]
    )
    thing, never = found["object_statistics"]["classes"]
    assert thing["objects"] == found["object_statistics"]["objects"] > 0
    assert (never["name"], never["objects"]) == ("<script>never", 0)
    sides = found["image_statistics"]["longer_sides"]
    assert sum(sides["counts"]) == found["readable_images"]


def test_the_terminal_shows_what_matters_and_the_verdict(data):
    text = summary(data)
    assert "2 boxes without area, left out: look at this" in text
    assert f"{len(UNREADABLE)} unreadable images: {STOPS}" in text
    assert "gray images" not in text
    assert text.splitlines()[-1].startswith("Training or its evaluation would stop")
    fine = summary(with_findings(Finding("gray images", NOTE, 1, "")))
    assert fine == "Nothing here stops training."


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize("num_parts", [1, 2])
def test_a_histogram_has_its_colors_where_its_counts_are(logarithmic, num_parts):
    colors = ("#ff0000", "#0000ff")[:num_parts]
    edges = [1.0, 2.0, 4.0, 8.0] if logarithmic else [0.0, 1.0, 2.0, 3.0]
    histogram = Histogram(edges, [0, 0, 5])
    parts = tuple((color, color, histogram) for color in colors)
    picture = HistogramPicture("t", "c", "x", "y", parts, logarithmic)
    pixels = np.asarray(Image.open(io.BytesIO(plot_histogram(picture))).convert("RGB")).astype(int)
    top = [255, 0, 0] if num_parts == 1 else [0, 0, 255]
    near = np.abs(pixels - top).sum(axis=2) < 30
    # Below the legend and above the axis.
    height, width = near.shape
    columns = np.flatnonzero(near[int(0.4 * height) : int(0.6 * height)].any(axis=0))
    assert len(columns) and columns.min() > width / 2
