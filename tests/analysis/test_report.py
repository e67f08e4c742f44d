"""The report: complete, in one file, and safe whatever the data are called."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from measured_boxes import write_made_up_quality
from soft_teacher.analysis.curves import Chart, Curve, plot_chart
from soft_teacher.analysis.html_page import card, figure, paragraph, table
from soft_teacher.analysis.logged_pictures import read_logged_pictures
from soft_teacher.analysis.report import (
    QUALITY_FOLDER,
    ReportedData,
    ReportedRun,
    build_report,
    summarize,
)
from soft_teacher.analysis.results import AP_NAMES, summarize_seeds

EVIL = "<script>alert('&')</script>"
EVIL_FILE = "<script>alert('&').png"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """Collects text, elements and attributes; fails if elements are not nested well."""

    def __init__(self, document):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(document)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def values(self, attribute):
        return [value for _, name, value in self.attributes if name == attribute]


def ap(value):
    return dict.fromkeys(AP_NAMES, value)


def made_up_results(seed=0):
    return {
        "supervised": ap(12.34),
        "soft_teacher": {"student": ap(21.0), "teacher": ap(23.46)},
        "seconds": {
            "install": None,
            "data": 4.0,
            "supervised": 300.2,
            "soft_teacher": 3661.0,
            "evaluation": 60.0,
        },
        "seed": seed,
        "versions": {"torch": EVIL},
    }


def write_run(folder, models, losses):
    """metrics.json and predictions of a made-up training."""
    evaluated = {f"{m}/bbox/{name}": 5.0 for m in models for name in AP_NAMES}
    lines = [{"iteration": i, **{name: 1.0 / (i + 1) for name in losses}} for i in range(0, 60, 20)]
    folder.mkdir()
    (folder / "metrics.json").write_text(
        "".join(json.dumps(x) + "\n" for x in [*lines, {"iteration": 60, **evaluated}])
    )
    for model in models:
        inference = folder / "inference" / model / "val"
        inference.mkdir(parents=True)
        found = {"image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "score": 0.9}
        (inference / "coco_instances_results.json").write_text(json.dumps([found]))
    config = folder.with_suffix(".yaml")
    config.write_text(f"_BASE_: base.yaml\nOUTPUT_DIR: {folder.name}  # {EVIL}\n")
    return ReportedRun(folder, config)


@pytest.fixture
def parts(tmp_path):
    """Arguments of `build_report` for two made-up trainings whose names try to break the page."""
    (tmp_path / "base.yaml").write_text("SEED: 1\n")
    Image.fromarray(np.full((50, 60, 3), 120, np.uint8)).save(tmp_path / EVIL_FILE)
    truth = {
        "images": [{"id": 1, "file_name": EVIL_FILE, "height": 50, "width": 60}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 21]}],
        "categories": [{"id": 1, "name": EVIL}],
    }
    (tmp_path / "val.json").write_text(json.dumps(truth))
    noted = ("pseudo_boxes_rpn", "pseudo_precision", "pseudo_variance", "background_weight")
    unlabeled = ("loss_cls", "loss_cls_unsup", *noted)
    return {
        "title": EVIL,
        "results": made_up_results(),
        "supervised": write_run(tmp_path / "supervised", ["student"], ["loss_cls"]),
        "soft_teacher": write_run(tmp_path / "soft_teacher", ["student", "teacher"], unlabeled),
        "data": ReportedData(
            "val", tmp_path / "val.json", tmp_path, {"labeled": 4, "unlabeled": 6, "val": 1}
        ),
        "commands": [f"python train_net.py {EVIL}"],
    }


def test_names_and_texts_cannot_become_code_of_the_page(parts):
    document = build_report(**parts)
    page = Page(document)
    assert "<script" not in document.lower()
    assert "script" not in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "".join(page.text).count(EVIL) >= 5, "title twice, command, config, version"
    assert f"Ground truth: {EVIL_FILE}" in page.values("alt")


def test_the_page_needs_no_other_file(parts):
    page = Page(build_report(**parts))
    assert page.values("src")
    assert all(x.startswith("data:image/") for x in page.values("src"))
    assert not page.values("href")
    assert not {"link", "iframe", "object", "embed"} & set(page.tags)
    assert "://" not in "".join([*page.text, *page.values("style")])
    assert "url(" not in "".join(page.text)
    assert any("default-src 'none'" in x for x in page.values("content"))


def test_the_page_shows_every_result(parts):
    page = Page(build_report(**parts))
    text = "".join(page.text)
    for number in ("12.3", "21.0", "23.5", "+11.1", "0:05:00", "1:01:01"):
        assert number in text, number
    assert "1 of 1 found, 0 wrong" in text
    assert "SEED: 1" in text, "the base config"
    # Charts of AP, losses, pseudo boxes, quality, variance and weight, then three pictures.
    assert page.tags.count("img") == 6 + 3
    assert all(page.values("alt"))


def test_means_and_deviations_are_shown_where_there_are_several_seeds(parts):
    runs = [made_up_results(seed) for seed in (0, 1)]
    runs[1]["soft_teacher"]["teacher"] = ap(25.46)
    document = build_report(**parts, seeds=summarize_seeds(runs))
    text = "".join(Page(document).text)
    assert "24.5 ± 1.4" in text
    assert "Seed 1" in text


def test_the_summary_calls_a_loss_a_loss_and_no_detection_no_gain():
    counts = {"labeled": 4, "unlabeled": 6, "val": 1}
    results = made_up_results()
    assert "a gain of 11.1 AP" in summarize(results, counts)
    results["soft_teacher"]["teacher"] = ap(10.0)
    assert "a loss of 2.3 AP" in summarize(results, counts)
    results["supervised"] = ap(None)
    assert "no gain to report" in summarize(results, counts)


def test_pictures_that_the_training_logged_are_in_the_report(parts):
    folder = parts["soft_teacher"].output_dir
    writer = SummaryWriter(str(folder))
    for step in range(9, 100, 10):
        writer.add_image("pseudo_labels", np.full((3, 4, 5), step, np.uint8), step)
    writer.close()
    assert list(read_logged_pictures(folder, "pseudo_labels", at_most=3)) == [29, 59, 99]
    assert len(read_logged_pictures(folder, "pseudo_labels", at_most=50)) == 10
    assert read_logged_pictures(folder, "something_else", at_most=3) == {}
    page = Page(build_report(**parts))
    assert page.tags.count("img") == 6 + 3 + 6
    assert "Iteration 100" in page.text


def test_an_analysis_of_the_pseudo_labels_is_in_the_report(parts):
    write_made_up_quality(parts["soft_teacher"].output_dir / QUALITY_FOLDER, EVIL)
    document = build_report(**parts)
    page = Page(document)
    assert "script" not in page.tags
    assert page.tags.count("img") == 6 + 3 + 3
    text = "".join(page.text)
    assert "Quality of the pseudo labels" in text
    assert "the variance says more" in text
    assert f"The teacher of {EVIL} labeled these images." in text


def test_every_block_escapes_what_it_is_given():
    blocks = [
        paragraph(EVIL),
        card(EVIL, EVIL),
        table([EVIL], [[EVIL, EVIL]]),
        figure(b"", EVIL, EVIL, '"><script>'),
    ]
    for block in blocks:
        assert "<script" not in block
        Page(block)


def test_charts_without_points_are_known_and_gaps_do_no_harm():
    assert Chart("", "", "", (Curve("a", {}, "red"),)).empty
    chart = Chart("", "", "", (Curve("a", {1: 1.0, 2: float("nan")}, "red"), Curve("b", {}, "red")))
    assert not chart.empty
    assert plot_chart(chart).startswith(b"\x89PNG")
