"""tools/analyze_pseudo_labels.py: with a teacher whose labels are known, and with a real model."""

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from one_stage import RETINANET
from soft_teacher import load_config
from soft_teacher.modeling import Guidance
from soft_teacher.modeling.guidance import PseudoLabelRules
from tiny_training import NARROW, NUM_UNLABELED, NUM_VAL, write_config

MISPLACED_VARIANCE, PLACED_VARIANCE = 0.3, 0.01


@pytest.fixture
def tool():
    path = Path(__file__).parents[1] / "tools/analyze_pseudo_labels.py"
    spec = importlib.util.spec_from_file_location("analyze_pseudo_labels", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    """A config whose weak views differ in size and are flipped or not."""
    changes = {"INPUT__MIN_SIZE_TRAIN": (48, 64, 96), "INPUT__MIN_SIZE_TRAIN_SAMPLING": "choice"}
    write_config(tmp_path, **NARROW, **changes)
    return tmp_path


def save_models(tool_folder):
    """A checkpoint of two random models that differ."""
    cfg = load_config(str(tool_folder / "config.yaml"))
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(build_model(cfg).state_dict())
    path = tool_folder / "both.pth"
    torch.save({"model": states[0], "teacher": states[1]}, path)
    return path


class KnowingTeacher(nn.Module):
    """Frames each object as it is (score 0.95) and once more beside it (score 0.6).

    The variance of the boxes beside is larger, because their refined boxes differ more.
    """

    def __init__(self, truth_file, rules):
        super().__init__()
        content = json.loads(truth_file.read_text())
        self.boxes = {x["image_id"]: x for x in content["annotations"]}
        self.rules = rules

    def annotate(self, weak):
        (view,) = weak
        truth = self.boxes[view["image_id"]]
        x, y, w, h = truth["bbox"]
        corners = np.array(view["matrix"]) @ np.array([[x, x + w], [y, y + h], [1, 1]])
        box = torch.tensor([*corners[:2].min(axis=1), *corners[:2].max(axis=1)]).float()
        side = box[2] - box[0]
        boxes = torch.stack([box, box + torch.tensor([0.6, 0, 0.6, 0]) * side])
        labels = Instances(
            tuple(view["image"].shape[1:]),
            pred_boxes=Boxes(boxes),
            scores=torch.tensor([0.95, 0.6]),
            pred_classes=torch.tensor([truth["category_id"] - 1] * 2),
        )

        def judge(score_boxes, refine_boxes, refine_classes):
            noise = (refine_boxes[0].view(-1, 2, 4) - boxes) / side
            share = torch.tensor([PLACED_VARIANCE, MISPLACED_VARIANCE])[None, :, None]
            return [], [(boxes + noise * share / self.rules.jitter_scale * side).flatten(0, 1)]

        return Guidance([labels], [view["matrix"]], judge, self.rules)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def analyze(tool, folder, weights, output, *options):
    config = ["--config-file", str(folder / "config.yaml"), "--weights", str(weights)]
    tool.main([*config, "--output", str(output), "--resamples", "20", *options])
    return json.loads((output / "summary.json").read_text())


def test_known_labels_give_their_precision_recall_and_correlations(
    tool, folder, tmp_path, monkeypatch, capsys
):
    rules = PseudoLabelRules.from_config(load_config(str(folder / "config.yaml")))
    teacher = KnowingTeacher(folder / "unlabeled.json", rules)
    monkeypatch.setattr(tool, "load_models", lambda cfg: {"student": None, "teacher": teacher})
    found = analyze(tool, folder, folder / "config.yaml", tmp_path / "out")
    assert (found["images"], found["objects"], found["boxes"]) == (6, 6, 12)
    rates = {x["threshold"]: (x["precision"], x["recall"]) for x in found["thresholds"]}
    assert rates[0.05] == rates[0.5] == (0.5, 1)
    assert rates[0.7] == rates[0.9] == (1, 1)
    boxes = rows_of(tmp_path / "out/boxes.csv")
    for number, box in enumerate(boxes):
        misplaced = number % 2 == 1
        assert float(box["score"]) == pytest.approx(0.6 if misplaced else 0.95)
        assert float(box["iou"]) == pytest.approx(0.4 / 1.6 if misplaced else 1, abs=0.01)
        assert box["right"] == str(int(not misplaced))
        # Ten copies give the deviation of their noise to about a quarter.
        expected = MISPLACED_VARIANCE if misplaced else PLACED_VARIANCE
        assert float(box["variance"]) == pytest.approx(expected, rel=0.5)
    above = next(x for x in found["correlations"] if x["above"] == 0.5)
    assert above["score"]["value"] > 0.8
    assert above["variance"]["value"] < -0.5
    assert "precision" in rows_of(tmp_path / "out/thresholds.csv")[0]
    assert f"Page: {tmp_path / 'out/index.html'}" in capsys.readouterr().out


def test_a_checkpoint_is_measured_and_measured_again_alike(tool, folder, tmp_path):
    weights = save_models(folder)
    outputs = [tmp_path / x for x in ("a", "b", "student", "three")]
    first = analyze(tool, folder, weights, outputs[0])
    analyze(tool, folder, weights, outputs[1])
    analyze(tool, folder, weights, outputs[2], "--model", "student")
    few = analyze(tool, folder, weights, outputs[3], "--max-images", "3")
    assert first["images"] == NUM_UNLABELED
    assert first["boxes"] > 10, "of a low score, as SCORE_THRESH_TEST lets them through"
    tables = [(x / "boxes.csv").read_bytes() for x in outputs]
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]
    assert (few["images"], few["images_in_sets"]) == (3, NUM_UNLABELED)
    # Which images are drawn does not change what is found in them.
    assert {*tables[3].splitlines()} < {*tables[0].splitlines()}


def test_an_image_that_cannot_be_read_is_left_out_and_named(tool, folder, tmp_path, capsys):
    weights = save_models(folder)
    (folder / "unlabeled_2.png").write_bytes(b"no image")
    found = analyze(tool, folder, weights, tmp_path / "out")
    assert found["images"] == NUM_UNLABELED - 1
    assert found["unreadable_images"].endswith("unlabeled_2.png")
    assert "unlabeled_2.png" in capsys.readouterr().err
    assert "unlabeled_2" not in (tmp_path / "out/boxes.csv").read_text()


def test_boxes_whose_spread_is_unknown_are_the_least_reliable(tool, tmp_path):
    """A one-stage detector gives a box that too few of its predictions surround no spread."""
    keys = {**NARROW, **RETINANET, "MODEL__RETINANET__SCORE_THRESH_TEST": 0.0}
    keys["SOFT_TEACHER__PSEUDO_LABELS__MIN_SCORE"] = 0.005
    keys["SOFT_TEACHER__PSEUDO_LABELS__CLS_SCORE"] = 0.005
    write_config(tmp_path, **keys)
    weights = save_models(tmp_path)
    found = analyze(tool, tmp_path, weights, tmp_path / "out", "--min-score", "0.005")
    variances = [float(x["variance"]) for x in rows_of(tmp_path / "out/boxes.csv")]
    assert found["boxes"] == len(variances) > 10
    assert 0 < sum(np.isinf(variances)) < len(variances)
    assert not np.isnan(variances).any()
    assert (tmp_path / "out/iou_against_variance.png").stat().st_size > 0


def test_without_truth_in_the_unlabeled_set_the_test_set_is_taken(tool, folder, tmp_path):
    content = json.loads((folder / "unlabeled.json").read_text())
    (folder / "unlabeled.json").write_text(json.dumps({**content, "annotations": []}))
    weights = save_models(folder)
    found = analyze(tool, folder, weights, tmp_path / "out")
    assert (found["images"], found["sets"]) == (NUM_VAL, f"test_{folder.name}_val")
    labeled = f"test_{folder.name}_labeled"
    assert analyze(tool, folder, weights, tmp_path / "out", "--set", labeled)["sets"] == labeled
    unlabeled = f"test_{folder.name}_unlabeled"
    with pytest.raises(ValueError, match=f"no ground truth in {unlabeled}"):
        analyze(tool, folder, weights, tmp_path / "out", "--set", unlabeled)
    with pytest.raises(ValueError, match="no set nowhere"):
        analyze(tool, folder, weights, tmp_path / "out", "--set", "nowhere")


def test_without_box_jittering_it_says_which_key_to_set(tool, folder, tmp_path):
    weights = folder / "config.yaml"
    with pytest.raises(ValueError, match=r"add SOFT_TEACHER\.JITTER\.ENABLED True"):
        off = ("SOFT_TEACHER.JITTER.ENABLED", "False")
        analyze(tool, folder, weights, tmp_path / "out", *off)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--weights", "nowhere.pth"), "there is no file nowhere.pth"),
        (("--max-images", "0"), "--max-images must be at least 1"),
        (("--min-score", "1"), "it must lie in 0 to 1"),
        (("--seed", "-1"), "must not be negative"),
        (("SEED",), "KEY VALUE pairs expected"),
    ],
)
def test_a_wrong_command_line_is_refused(tool, folder, capsys, option, message):
    config = str(folder / "config.yaml")
    with pytest.raises(SystemExit):
        tool.parse_arguments(["--config-file", config, "--weights", config, *option])
    assert message in capsys.readouterr().err
