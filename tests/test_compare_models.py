"""tools/compare_models.py: with detectors whose detections are known, and with a real model."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

from soft_teacher import load_config
from tiny_training import NARROW, NUM_VAL, write_config


@pytest.fixture
def tool():
    path = Path(__file__).parents[1] / "tools/compare_models.py"
    spec = importlib.util.spec_from_file_location("compare_models", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    write_config(tmp_path, **NARROW)
    (tmp_path / "baseline.pth").touch()
    (tmp_path / "soft_teacher.pth").touch()
    return tmp_path


class KnowingDetector(nn.Module):
    """Finds the object of each image, but in some images nothing."""

    def __init__(self, truth_file, blind):
        super().__init__()
        content = json.loads(truth_file.read_text())
        self.objects = {x["image_id"]: x for x in content["annotations"]}
        self.blind = blind

    def forward(self, views):
        (view,) = views
        x, y, w, h = self.objects[view["image_id"]]["bbox"]
        count = 0 if view["image_id"] in self.blind else 1
        found = Instances(
            (view["height"], view["width"]),
            pred_boxes=Boxes(torch.tensor([[x, y, x + w, y + h]]).float()[:count]),
            scores=torch.tensor([0.9])[:count],
            pred_classes=torch.tensor([self.objects[view["image_id"]]["category_id"] - 1])[:count],
        )
        return [{"instances": found}]


@pytest.fixture
def known(tool, folder, monkeypatch):
    """The baseline misses image 1, the teacher misses none; the other two models fail."""
    truth = folder / "val.json"
    models = {
        "baseline.pth": {"student": KnowingDetector(truth, {1}), "teacher": None},
        "soft_teacher.pth": {"student": None, "teacher": KnowingDetector(truth, set())},
    }
    monkeypatch.setattr(tool, "load_models", lambda cfg: models[Path(cfg.MODEL.WEIGHTS).name])


def compare(tool, folder, *options):
    weights = {x: str(folder / f"{x}.pth") for x in ("baseline", "soft_teacher")}
    files = ["--baseline", weights["baseline"], "--soft-teacher", weights["soft_teacher"]]
    output = ["--output", str(folder / "out")]
    tool.main(["--config-file", str(folder / "config.yaml"), *files, *output, *options])
    return (folder / "out/index.html").read_text()


def captions(page):
    return re.findall(r"<figcaption><b>([^<]*)</b> ([^<]*)</figcaption>", page)


def test_the_images_come_first_on_which_the_models_disagree(tool, folder, known, capsys):
    page = compare(tool, folder, "--num", "2")
    assert captions(page)[:3] == [
        ("Ground truth", "1 objects"),
        ("Baseline", "0 of 1 found, 0 wrong"),
        ("Soft Teacher", "1 of 1 found, 0 wrong"),
    ]
    assert captions(page)[4:6] == [
        ("Baseline", "1 of 1 found, 0 wrong"),
        ("Soft Teacher", "1 of 1 found, 0 wrong"),
    ]
    assert "On 1 of the 3 images Soft Teacher has the higher F1 score" in page
    pictures = sorted(x.name for x in (folder / "out").glob("*.jpg"))
    assert pictures == ["001.jpg", "002.jpg"]
    with Image.open(folder / "out/001.jpg") as sheet:
        assert sheet.width > 3 * 400
    assert "val_1.png: F1 0.00 (baseline), 1.00 (Soft Teacher)" in capsys.readouterr().out


def test_images_are_chosen_by_id_or_by_name_in_that_order(tool, folder, known):
    page = compare(tool, folder, "--images", "val_2.png", "0")
    shown = re.findall(r"<h3>([^<]*): F1", page)
    assert [Path(x).name for x in shown] == ["val_2.png", "val_0.png"]
    with pytest.raises(ValueError, match="--images names 77"):
        compare(tool, folder, "--images", "77")


def test_an_image_that_cannot_be_read_is_left_out_by_name(tool, folder, known, capsys):
    (folder / "val_2.png").write_bytes(b"no image")
    page = compare(tool, folder)
    assert "images on which the F1 scores" in page and f"{NUM_VAL - 1} of {NUM_VAL - 1}" in page
    assert "val_2.png" in capsys.readouterr().err and "val_2.png" not in page


def test_low_scores_are_shown_if_asked_for_whatever_the_detector_drops(tool, folder, monkeypatch):
    seen = []

    def load(cfg):
        seen.append(cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST)
        return {"model": KnowingDetector(folder / "val.json", set())}

    monkeypatch.setattr(tool, "load_models", load)
    config = folder / "config.yaml"
    config.write_text(
        config.read_text().replace("SCORE_THRESH_TEST: 0.0", "SCORE_THRESH_TEST: 0.3")
    )
    compare(tool, folder, "--min-score", "0.01")
    compare(tool, folder, "--min-score", "0.5")
    assert seen == [0.01, 0.01, 0.3, 0.3]
    with pytest.raises(SystemExit):
        compare(tool, folder, "--min-score", "1")


def test_names_cannot_become_code_of_the_page(tool, folder, known):
    evil = "<script>alert('&').png"
    for name in ("labeled", "unlabeled", "val"):
        path = folder / f"{name}.json"
        content = path.read_text().replace("val_1.png", evil)
        path.write_text(content.replace('"name": "g"', '"name": "$g"'))
    (folder / "val_1.png").rename(folder / evil)
    page = compare(tool, folder, "--images", evil)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert all(x.startswith("data:") for x in re.findall(r'src="([^"]{0,20})', page))


def test_checkpoints_are_read_and_compared(tool, folder):
    cfg = load_config(str(folder / "config.yaml"))
    state = build_model(cfg).state_dict()
    torch.save({"model": state, "teacher": state}, folder / "baseline.pth")
    torch.save({"model": state}, folder / "soft_teacher.pth")
    page = compare(tool, folder, "--min-score", "0.1", "--num", "9")
    # The teacher and a file of one model are the same here, so they cannot disagree.
    assert f"On 0 of the {NUM_VAL} images Soft Teacher has the higher" in page
    by_model = {title: [c for t, c in captions(page) if t == title] for title in tool.MODELS}
    assert by_model["Baseline"] == by_model["Soft Teacher"]
    assert len(by_model["Baseline"]) == NUM_VAL
