"""tools/pseudo_label.py as a user runs it, and training on what it writes."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.engine import default_argument_parser
from detectron2.layers import batched_nms
from detectron2.utils.events import EventStorage
from PIL import Image
from pycocotools.coco import COCO

import train_net
from soft_teacher import load_config
from soft_teacher.data import build_unlabeled_loader
from soft_teacher.data.pseudo_label_files import pseudo_labeled_records
from soft_teacher.engine import evaluate_models, load_models
from soft_teacher.engine.journal import Journal
from soft_teacher.modeling import SoftTeacherRCNN
from soft_teacher.modeling.fixed_labels import fixed_guidance
from soft_teacher.modeling.guidance import PseudoLabelRules
from tiny import labeled_view, tiny_config, tiny_model
from tiny_training import NARROW, NUM_UNLABELED, write_config

TOOL = Path(__file__).parents[1] / "tools/pseudo_label.py"
# Random weights find every class everywhere with about this score.
SCORE = 0.25
FIXED = {
    "SOFT_TEACHER.EMA.ENABLED": False,
    "SOFT_TEACHER.JITTER.ENABLED": False,
    "SOFT_TEACHER.BACKGROUND.RELIABILITY": "none",
}


@pytest.fixture
def tool(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    spec = importlib.util.spec_from_file_location("pseudo_label", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a config, its sets and a model; category ids are not 1 to K."""
    folder = tmp_path_factory.mktemp("pseudo")
    config = write_config(folder, **NARROW)
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())
        for entry in content["categories"]:
            entry["id"] = 10 * entry["id"]
        for entry in content["annotations"]:
            entry["category_id"] *= 10
        path.write_text(json.dumps(content))
    model = tiny_model(**NARROW)
    torch.save({"model": model.state_dict()}, folder / "weights.pth")
    return folder, config


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


def test_scales_and_mirror_are_merged_by_nms(tool, place, tmp_path):
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
    merged = [
        {
            "image_id": 0,
            "category_id": 10 * int(classes[k]) + 10,
            "score": float(scores[k]),
            "bbox": [*boxes[k, :2].tolist(), *(boxes[k, 2:] - boxes[k, :2]).tolist()],
        }
        for k in kept
    ]
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


def test_the_model_that_is_asked_for_must_be_there(tool, place, tmp_path):
    with pytest.raises(ValueError, match="leave --model out"):
        run(tool, place, tmp_path / "out.json", "--model", "student")


# (image, category id, box xywh, score): what the training below learns from.
BOXES = [
    (0, 10, [5, 6, 30, 20], 0.95),
    (0, 20, [20, 30, 25, 30], 0.90),
    (1, 30, [1, 1, 20, 50], 0.91),
    (1, 10, [30, 8, 30, 30], 0.99),
    (2, 20, [8, 8, 40, 40], 0.3),
    (3, 20, [8, 8, 40, 40], 0.6),
    (4, 30, [0, 0, 64, 64], 0.93),
]


def write_labels(folder, boxes=BOXES, images=range(NUM_UNLABELED), **changes):
    annotations = [
        {"id": k, "image_id": i, "category_id": c, "bbox": b, "score": s, "iscrowd": 0}
        for k, (i, c, b, s) in enumerate(boxes, 1)
    ]
    content = {
        "images": [
            {"id": i, "file_name": f"unlabeled_{i}.png", "width": 64, "height": 64} for i in images
        ],
        "annotations": annotations,
        "categories": [{"id": 10 * k + 10, "name": "rgb"[k]} for k in range(3)],
        **changes,
    }
    path = folder / "pseudo.json"
    path.write_text(json.dumps(content))
    return path


def stage_2(place, file, **overrides):
    """The config of training on pseudo labels, with the usual thresholds."""
    keys = {
        **FIXED,
        "SOFT_TEACHER.PSEUDO_LABELS.FILES": (str(file),),
        "SOFT_TEACHER.PSEUDO_LABELS.MIN_SCORE": 0.5,
        "SOFT_TEACHER.PSEUDO_LABELS.CLS_SCORE": 0.9,
        "SOFT_TEACHER.PSEUDO_LABELS.RPN_SCORE": 0.9,
        **{key.replace("__", "."): value for key, value in overrides.items()},
    }
    return load_config(str(place[1]), [x for pair in keys.items() for x in pair])


def carried(boxes, matrix, size):
    """Corners mapped by a matrix, enclosed and clipped, (R, 4)."""
    found = []
    for x, y, w, h in boxes:
        corners = np.array([[x, y, 1], [x + w, y, 1], [x, y + h, 1], [x + w, y + h, 1]])
        points = (corners @ matrix.T)[:, :2].clip(0, [size[1], size[0]])
        found.append([*points.min(0), *points.max(0)])
    return np.array(found).reshape(-1, 4)


def test_stage_2_learns_from_exactly_the_boxes_above_the_threshold(place, tmp_path, monkeypatch):
    cfg = stage_2(place, write_labels(tmp_path), SOLVER__MAX_ITER=3, TEST__EVAL_PERIOD=0)
    cfg.DATASETS.TEST, cfg.SOLVER.IMS_PER_BATCH_UNLABELED = (), 3
    cfg.INPUT.AUG.BOX_GEOMETRY = True
    (tmp_path / "config.yaml").write_text(cfg.dump())
    seen, losses_of = [], SoftTeacherRCNN._unlabeled_losses

    def note(self, strong, in_view):
        seen.append((strong, in_view))
        return losses_of(self, strong, in_view)

    monkeypatch.setattr(SoftTeacherRCNN, "_unlabeled_losses", note)
    options = ["--config-file", str(tmp_path / "config.yaml")]
    arguments = [*options, "OUTPUT_DIR", str(tmp_path / "output")]
    train_net.main(default_argument_parser().parse_args(arguments))
    assert len(seen) == 3
    images = []
    for strong, in_view in seen:
        masks = (in_view.teaches_rpn, in_view.teaches_cls, in_view.teaches_reg)
        for i, view in enumerate(strong):
            images.append(view["image_id"])
            own = [x for x in BOXES if x[0] == view["image_id"] and x[3] > 0.9]
            size = tuple(view["image"].shape[1:])
            expected = carried([x[2] for x in own], np.asarray(view["matrix"]), size)
            visible = (expected[:, 2:] > expected[:, :2]).all(1)
            for mask in masks:
                found = in_view.targets[i][mask[i]]
                np.testing.assert_allclose(
                    found.gt_boxes.tensor, expected[visible], rtol=1e-4, atol=1e-3
                )
                classes = np.array([x[1] // 10 - 1 for x in own])[visible]
                assert found.gt_classes.tolist() == classes.tolist()
    # Nothing is above the threshold in the others.
    assert set(images) == {0, 1, 4}
    logged = [json.loads(x) for x in (tmp_path / "output/metrics.json").read_text().splitlines()]
    assert max(x.get("loss_cls_unsup", 0) for x in logged) > 0
    found = torch.load(tmp_path / "output/model_final.pth", weights_only=True)
    assert all(torch.equal(v, found["teacher"][k]) for k, v in found["model"].items())


def test_images_without_a_box_are_kept_on_request(place, tmp_path):
    file = write_labels(tmp_path, images=range(5))
    records = pseudo_labeled_records(
        stage_2(place, file, DATALOADER__FILTER_EMPTY_ANNOTATIONS=False)
    )
    # The sixth image of the set is not in the file: nobody knows what it shows.
    assert [x["image_id"] for x in records] == [0, 1, 2, 3, 4]
    assert [len(x["annotations"]) for x in records] == [2, 2, 0, 1, 1]


def test_the_loss_weight_scales_the_losses_on_pseudo_labels(place, tmp_path):
    cfg = stage_2(place, write_labels(tmp_path))
    batch = next(iter(build_unlabeled_loader(cfg)))
    weak, strong = [x["weak"] for x in batch], [x["strong"] for x in batch]
    losses = {}
    for weight in (1.0, 2.0):
        model = tiny_model(**NARROW, **FIXED, SOFT_TEACHER__UNSUP_LOSS_WEIGHT=weight)
        guidance = fixed_guidance(weak, PseudoLabelRules.from_config(cfg), model.device)
        torch.manual_seed(0)
        with torch.no_grad(), EventStorage():
            losses[weight] = model([labeled_view(0)], strong, guidance)
    assert sum(float(v) for k, v in losses[1.0].items() if k.endswith("_unsup")) > 0
    for name, value in losses[1.0].items():
        factor = 2 if name.endswith("_unsup") else 1
        assert float(losses[2.0][name]) == pytest.approx(factor * float(value))


def test_ground_truth_is_no_pseudo_label(place, tmp_path):
    cfg = stage_2(place, place[0] / "unlabeled.json")
    with pytest.raises(ValueError, match="has the score None, so this is no file of pseudo labels"):
        pseudo_labeled_records(cfg)


def test_annotations_of_the_unlabeled_set_do_not_count(place, tmp_path):
    cfg = stage_2(place, write_labels(tmp_path))
    honest = pseudo_labeled_records(cfg)
    path = place[0] / "unlabeled.json"
    before = path.read_text()
    path.write_text(json.dumps({"images": json.loads(before)["images"]}))
    bare = pseudo_labeled_records(cfg)
    path.write_text(before)
    assert bare == honest and len(bare) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": [{"id": 0, "file_name": "a.png", "width": 4, "height": 4}]}, "lists none of"),
        ({"categories": [{"id": 1, "name": "r"}]}, "other categories than the labeled set"),
        ({"annotations": []}, "no box with a score above"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(place, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        pseudo_labeled_records(stage_2(place, write_labels(tmp_path, **change)))


def test_a_missing_file_and_a_wrong_number_of_files_are_refused(place, tmp_path):
    with pytest.raises(ValueError, match="write it with tools"):
        pseudo_labeled_records(stage_2(place, tmp_path / "nowhere.json"))
    cfg = stage_2(place, write_labels(tmp_path))
    cfg.SOFT_TEACHER.PSEUDO_LABELS.FILES = cfg.SOFT_TEACHER.PSEUDO_LABELS.FILES * 2
    with pytest.raises(ValueError, match="names 2 files for the 1 sets"):
        pseudo_labeled_records(cfg)


@pytest.mark.parametrize("key", FIXED)
def test_what_needs_a_teacher_is_refused_beside_files(place, tmp_path, key):
    cfg = stage_2(place, "some.json")
    default = tiny_config()
    section, name = key.removeprefix("SOFT_TEACHER.").split(".")
    cfg.SOFT_TEACHER[section][name] = default.SOFT_TEACHER[section][name]
    with pytest.raises(ValueError, match=f"{key} is .* there is no teacher"):
        SoftTeacherRCNN.from_config(cfg)
