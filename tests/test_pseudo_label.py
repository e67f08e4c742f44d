"""tools/pseudo_label.py as a user runs it."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.layers import batched_nms
from PIL import Image
from pycocotools.coco import COCO
from torchvision.ops import box_iou

import train_net
from pseudo_label_place import label_place
from soft_teacher import load_config
from soft_teacher.engine import evaluate_models, load_models
from soft_teacher.engine.journal import Journal
from soft_teacher.engine.pseudo_labeling import LabelingOptions, fingerprint
from tiny_training import NUM_UNLABELED

TOOL = Path(__file__).parents[1] / "tools/pseudo_label.py"
# Random weights find every class everywhere with about this score.
SCORE = 0.25


@pytest.fixture
def tool(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    spec = importlib.util.spec_from_file_location("pseudo_label", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return label_place(tmp_path_factory.mktemp("pseudo"))


def run(tool, place, output, *options):
    """Label the unlabeled set of the place, or what the options name; the exit status."""
    folder, config = place
    arguments = ["--config-file", config, "--weights", folder / "weights.pth", "--output", output]
    chosen = [] if "--score-threshold" in options else ["--score-threshold", SCORE]
    return tool.main([str(x) for x in (*arguments, *chosen, *options)])


def rows(annotations):
    """Annotations as an array, sorted: image, category, score and box."""
    found = [(x["image_id"], x["category_id"], x["score"], *x["bbox"]) for x in annotations]
    return np.array(sorted(found))


def test_the_boxes_are_those_of_an_evaluation_of_the_model(tool, place, tmp_path, capsys):
    folder, config = place
    assert run(tool, place, tmp_path / "out.json", "--batch-size", "4") == 0
    coco = COCO(str(tmp_path / "out.json"))
    cfg = load_config(str(config), ["MODEL.WEIGHTS", str(folder / "weights.pth")])
    cfg.DATASETS.TEST = (next(x[0] for x in cfg.DATASETS.CUSTOM if x[0].endswith("_unlabeled")),)
    cfg.OUTPUT_DIR = str(tmp_path / "evaluation")
    train_net.check_test_sets(cfg)
    evaluate_models(cfg, load_models(cfg))
    (results,) = Path(cfg.OUTPUT_DIR).rglob("coco_instances_results.json")
    expected = [x for x in json.loads(results.read_text()) if x["score"] > SCORE]
    assert len(expected) > NUM_UNLABELED
    found = coco.dataset["annotations"]
    np.testing.assert_allclose(rows(found), rows(expected), rtol=1e-4, atol=1e-3)
    assert [x["id"] for x in found] == list(range(1, len(found) + 1))
    assert {x["category_id"] for x in found} <= {10, 20, 30}
    assert coco.dataset["categories"] == [{"id": 10 * k + 10, "name": "rgb"[k]} for k in range(3)]
    assert [(x["id"], x["file_name"]) for x in coco.dataset["images"]] == [
        (i, f"unlabeled_{i}.png") for i in range(NUM_UNLABELED)
    ]
    # The file says how it was made, but not where.
    assert coco.dataset["info"]["score_threshold"] == SCORE
    assert str(folder) not in (tmp_path / "out.json").read_text()
    assert "boxes with a score above 0.25 in 6 images" in capsys.readouterr().out


def test_scales_and_mirror_are_merged_and_boxes_averaged(tool, place, tmp_path):
    folder, config = place
    sizes = (64, 96)
    options = ["--scales", *map(str, sizes), "--flip"]
    assert run(tool, place, tmp_path / "out.json", *options) == 0
    found = json.loads((tmp_path / "out.json").read_text())["annotations"]
    cfg = load_config(str(config), ["MODEL.WEIGHTS", str(folder / "weights.pth")])
    model = load_models(cfg)["model"].eval()
    image = Image.open(folder / "unlabeled_0.png").convert("RGB")
    boxes, scores, classes = [], [], []
    for size in sizes:
        resized = np.asarray(image.resize((size, size), Image.BILINEAR))[:, :, ::-1]
        for pixels in (resized, resized[:, ::-1]):
            view = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
            with torch.no_grad():
                (one,) = model([{"image": view, "height": 64, "width": 64}])
            seen = one["instances"].pred_boxes.tensor
            if pixels is not resized:
                seen = torch.stack([64 - seen[:, 2], seen[:, 1], 64 - seen[:, 0], seen[:, 3]], 1)
            boxes.append(seen)
            scores.append(one["instances"].scores)
            classes.append(one["instances"].pred_classes)
    boxes, scores, classes = map(torch.cat, (boxes, scores, classes))
    kept = batched_nms(boxes, scores, classes, 0.5)[:100]
    kept = kept[scores[kept] > SCORE]
    merged = []
    for k in kept:
        voters = [
            j
            for j in range(len(boxes))
            if classes[j] == classes[k]
            and float(box_iou(boxes[j : j + 1], boxes[k : k + 1])) >= 0.5
        ]
        x0, y0, x1, y1 = (
            sum(float(scores[j]) * float(boxes[j, i]) for j in voters)
            / sum(float(scores[j]) for j in voters)
            for i in range(4)
        )
        category = 10 * int(classes[k]) + 10
        bbox = [x0, y0, x1 - x0, y1 - y0]
        entry = {"image_id": 0, "category_id": category, "score": float(scores[k]), "bbox": bbox}
        merged.append(entry)
    own = rows([x for x in found if x["image_id"] == 0])
    np.testing.assert_allclose(own, rows(merged), rtol=1e-4, atol=1e-3)


def interrupt_after(monkeypatch, num_batches):
    """As by Ctrl-C while a line is being written."""
    append = Journal.append

    def append_or_stop(self, entry):
        if self.num_entries == num_batches:
            with self._path.open("ab") as file:
                file.write(json.dumps(entry).encode()[:20])
            raise KeyboardInterrupt
        append(self, entry)

    monkeypatch.setattr(Journal, "append", append_or_stop)


def test_a_run_that_was_cut_off_goes_on_to_the_same_file(tool, place, tmp_path, monkeypatch):
    whole, resumed = tmp_path / "whole.json", tmp_path / "resumed.json"
    options = ("--batch-size", "2")
    assert run(tool, place, whole, *options) == 0
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        assert run(tool, place, resumed, *options) == tool.INTERRUPTED
    assert not resumed.exists()
    seen, read = [], tool.label_images

    def note(cfg, model, records, options, journal):
        seen.append(journal.num_entries)
        read(cfg, model, records, options, journal)

    monkeypatch.setattr(tool, "label_images", note)
    assert run(tool, place, resumed, *options) == 0
    assert seen == [2]
    assert resumed.read_bytes() == whole.read_bytes()
    assert [x.name for x in tmp_path.glob("resumed*")] == ["resumed.json"]
    # What is done is not done again.
    assert run(tool, place, resumed, *options) == 0
    assert seen == [2]


def test_other_settings_start_anew(tool, place, tmp_path, monkeypatch):
    output = tmp_path / "out.json"
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        run(tool, place, output, "--batch-size", "2")
    higher = ("--batch-size", "2", "--score-threshold", "0.26")
    assert run(tool, place, output, *higher) == 0
    run(tool, place, tmp_path / "fresh.json", *higher)
    assert output.read_bytes() == (tmp_path / "fresh.json").read_bytes()
    assert all(x["score"] > 0.26 for x in json.loads(output.read_text())["annotations"])
    # A file that is complete gives way to one with other settings too.
    run(tool, place, output, "--batch-size", "2")
    assert any(x["score"] < 0.26 for x in json.loads(output.read_text())["annotations"])


def test_other_classes_in_the_file_are_another_labeling(place):
    cfg = load_config(str(place[1]), ["MODEL.WEIGHTS", str(place[0] / "weights.pth")])
    marks = [
        fingerprint(cfg, "model", LabelingOptions(0.5, 1), [], [{"id": number, "name": name}])
        for number, name in ((1, "cat"), (1, "cat"), (2, "cat"), (1, "dog"))
    ]
    assert marks[0] == marks[1] and len(set(marks)) == 3


def test_a_file_that_holds_something_else_is_not_overwritten(tool, place, tmp_path):
    output = shutil.copy(place[0] / "labeled.json", tmp_path / "labeled.json")
    before = output.read_bytes()
    with pytest.raises(ValueError, match="no file of pseudo labels; it is not overwritten"):
        run(tool, place, output)
    assert output.read_bytes() == before


def test_unreadable_images_of_a_folder_are_set_aside_and_listed(tool, place, tmp_path, capsys):
    photos = tmp_path / "photos/deep"
    photos.mkdir(parents=True)
    for i in range(3):
        shutil.copy(place[0] / f"unlabeled_{i}.png", photos / f"{i}.png")
    (photos / "1.png").write_bytes(b"no image")
    assert run(tool, place, tmp_path / "out.json", "--images", photos.parent) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    assert [x["file_name"] for x in content["images"]] == ["deep/0.png", "deep/2.png"]
    assert [(x["width"], x["height"]) for x in content["images"]] == [(64, 64)] * 2
    assert content["info"]["unreadable_images"] == ["deep/1.png"]
    assert {x["image_id"] for x in content["annotations"]} == {1, 3}
    printed = capsys.readouterr().out
    assert "deep/1.png" in printed and "Unreadable images: 1" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--scales", "0"], "they must be at least 1"),
        (["--score-threshold", "1"], "it must lie in 0 to 1"),
        (["--weights", "nowhere.pth"], "there is no file nowhere.pth"),
    ],
)
def test_a_wrong_command_line_is_refused_with_its_reason(
    tool, place, tmp_path, options, message, capsys
):
    with pytest.raises(SystemExit):
        run(tool, place, tmp_path / "out.json", *options)
    assert message in capsys.readouterr().err


def test_a_coco_file_needs_the_right_image_root(tool, place, tmp_path):
    source = shutil.copy(place[0] / "unlabeled.json", tmp_path / "moved.json")
    with pytest.raises(ValueError, match=r"None of the 6 images .* check its image root"):
        run(tool, place, tmp_path / "out.json", "--images", source)
    # The first name is taken by now, as it would not be in another process.
    source = shutil.copy(source, tmp_path / "again.json")
    options = ["--images", source, "--image-root", place[0]]
    assert run(tool, place, tmp_path / "out.json", *options) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    assert [x["file_name"] for x in content["images"]] == [f"unlabeled_{i}.png" for i in range(6)]


def test_a_misspelled_set_is_refused_by_the_option(tool, place, tmp_path):
    with pytest.raises(ValueError, match=r"^--images unlabelled is no set of this config"):
        run(tool, place, tmp_path / "out.json", "--images", "unlabelled")


def test_the_model_that_is_asked_for_must_be_there(tool, place, tmp_path):
    with pytest.raises(ValueError, match="leave --model out"):
        run(tool, place, tmp_path / "out.json", "--model", "student")


@pytest.mark.parametrize("asked", [False, True])
def test_soft_nms_chooses_pseudo_boxes_only_if_asked(tool, place, asked):
    folder, config = place
    arguments = ["--config-file", config, "--weights", folder / "weights.pth", "--output", "x.json"]
    keys = [
        *("MODEL.ROI_HEADS.SOFT_NMS.ENABLED", True),
        *("MODEL.ROI_HEADS.SOFT_NMS.PSEUDO_LABELS", asked),
    ]
    cfg, _ = tool.read_config(tool.parse_arguments([str(x) for x in (*arguments, *keys)]))
    assert cfg.MODEL.ROI_HEADS.SOFT_NMS.ENABLED == asked
