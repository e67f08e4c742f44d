"""Result files for COCO's server: made from an evaluation without annotations, and checked."""

import contextlib
import importlib.util
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model
from PIL import Image
from pycocotools.coco import COCO

import train_net
from tiny import tiny_config

ROOT = Path(__file__).resolve().parents[1]
SET = "tiny_test-dev"
# Ids with a gap, as COCO's.
CATEGORIES = (1, 3, 90)


def load_tool():
    spec = importlib.util.spec_from_file_location(
        "coco_submission", ROOT / "tools/coco_submission.py"
    )
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


tool = load_tool()


def write_image_info(folder: Path) -> Path:
    """Three images, and their file without annotations."""
    random = np.random.default_rng(0)
    images = []
    for number, (height, width) in enumerate([(60, 80), (64, 64), (90, 50)], start=7):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.jpg")
        images.append(
            {"id": number, "file_name": f"{number}.jpg", "height": height, "width": width}
        )
    path = folder / "image_info_test-dev2017.json"
    categories = [{"id": i, "name": f"class {i}"} for i in CATEGORIES]
    path.write_text(json.dumps({"info": {}, "images": images, "categories": categories}))
    return path


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Folder with the images, and what `train_net.py --eval-only` writes about them."""
    folder = tmp_path_factory.mktemp("test_dev")
    info = write_image_info(folder)
    ids = {category: k for k, category in enumerate(CATEGORIES)}
    metadata = {"thing_dataset_id_to_contiguous_id": ids}
    register_coco_instances(SET, metadata, str(info), str(folder))
    config = folder / "config.yaml"
    keys = {
        "DATASETS.TEST": (SET,),
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.MIN_SIZE_TEST": 64,
        "MODEL.MASK_ON": True,
        "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsampleHead",
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    }
    cfg = tiny_config(**keys)
    config.write_text(cfg.dump())
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "weights.pth")
    arguments = ["--config-file", str(config), "--eval-only", "OUTPUT_DIR", str(folder / "out")]
    arguments += ["MODEL.WEIGHTS", str(folder / "weights.pth")]
    train_net.main(default_argument_parser().parse_args(arguments))
    return folder, folder / f"out/inference/model/{SET}/coco_instances_results.json"


def submit(folder: Path, results: Path, output: Path, *options: str) -> int:
    images = folder / "image_info_test-dev2017.json"
    arguments = [results, "--images", images, "--method", "soft_teacher", "--output", output]
    return tool.main([str(x) for x in (*arguments, *options)])


def content_of(output: Path, task: str) -> list[dict]:
    stem = "detections_test-dev2017_soft_teacher_results"
    with zipfile.ZipFile(output / task / f"{stem}.zip") as archive:
        assert archive.namelist() == [f"{stem}.json"]
        return json.loads(archive.read(f"{stem}.json"))


def test_a_set_without_annotations_becomes_the_files_that_the_server_takes(evaluated, tmp_path):
    folder, results = evaluated
    assert submit(folder, results, tmp_path) == 0
    detections = json.loads(results.read_text())
    assert {x["image_id"] for x in detections} == {7, 8, 9}
    assert {x["category_id"] for x in detections} == set(CATEGORIES)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "image_info_test-dev2017.json"))
    for task, key in (("bbox", "bbox"), ("segm", "segmentation")):
        entries = content_of(tmp_path, task)
        assert all(x.keys() == {"image_id", "category_id", key, "score"} for x in entries)
        assert [x[key] for x in entries] == [x[key] for x in detections]
        # COCO's own reader takes them for this set.
        file = tmp_path / f"{task}.json"
        file.write_text(json.dumps(entries))
        with contextlib.redirect_stdout(io.StringIO()):
            assert len(truth.loadRes(str(file)).anns) == len(entries)


def test_a_detector_without_masks_has_boxes_alone(evaluated, tmp_path):
    folder, results = evaluated
    detections = json.loads(results.read_text())
    for entry in detections:
        del entry["segmentation"]
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps(detections))
    assert submit(folder, boxes, tmp_path / "out") == 0
    assert [x.name for x in (tmp_path / "out").iterdir()] == ["bbox"]


def spoil(entry: dict, key: str, value: object) -> dict:
    if value is None:
        return {k: v for k, v in entry.items() if k != key}
    return {**entry, key: value}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("image_id", 1, "image 1 is not one of test-dev2017"),
        ("category_id", 2, "there is no category 2"),
        ("score", 1.5, "its score is 1.5"),
        ("score", float("nan"), "its score is nan"),
        ("score", None, "it has no score"),
        ("bbox", [0, 0, 10], "four finite numbers"),
        ("bbox", [0, 0, -3, 10], "is not inside the image"),
        ("bbox", [10, 10, 500, 10], "is not inside the image"),
        ("segmentation", [[1, 2, 3, 4, 5, 6]], "no compressed run-length code"),
        ("segmentation", {"size": [5, 5], "counts": "04"}, "its segmentation is for [5, 5]"),
    ],
)
def test_what_the_server_would_refuse_is_refused_and_nothing_is_written(
    evaluated, tmp_path, capsys, key, value, words
):
    folder, results = evaluated
    detections = json.loads(results.read_text())
    detections[4] = spoil(detections[4], key, value)
    spoiled = tmp_path / "spoiled.json"
    spoiled.write_text(json.dumps(detections))
    assert submit(folder, spoiled, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "Detection 4 cannot be handed in" in error and words in error
    assert not (tmp_path / "out").exists()


def test_more_detections_than_are_looked_at_are_refused(evaluated, tmp_path, capsys):
    folder, results = evaluated
    many = tmp_path / "many.json"
    many.write_text(json.dumps(json.loads(results.read_text())[:1] * 101))
    assert submit(folder, many, tmp_path / "out") == 1
    assert "has 101 detections, but 100 are looked at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "content", "words"),
    [
        (("--method", "a b"), None, "use letters, digits"),
        ((), "[", "is no complete JSON"),
        ((), "{}", "is no list of detections"),
        ((), "[]", "holds no detection"),
    ],
)
def test_other_mistakes_are_named(evaluated, tmp_path, capsys, options, content, words):
    folder, results = evaluated
    if content is not None:
        results = tmp_path / "results.json"
        results.write_text(content)
    assert submit(folder, results, tmp_path / "out", *options) == 1
    assert words in capsys.readouterr().err


def test_a_file_whose_name_does_not_tell_the_set_needs_its_name(evaluated, tmp_path, capsys):
    folder, results = evaluated
    info = tmp_path / "images.json"
    info.write_text((folder / "image_info_test-dev2017.json").read_text())
    output = tmp_path / "out"
    arguments = [results, "--images", info, "--method", "x", "--output", output]
    assert tool.main([str(x) for x in arguments]) == 1
    assert "give --set" in capsys.readouterr().err
    assert tool.main([str(x) for x in (*arguments, "--set", "test-challenge2017")]) == 0
    assert (output / "bbox/detections_test-challenge2017_x_results.zip").exists()
