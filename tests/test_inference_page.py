"""The Python on the page about using a detector, run by a program of somebody else."""

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pseudo_label_place import label_place
from soft_teacher import load_config
from soft_teacher.engine.traced_export import export_traced
from soft_teacher.engine.traced_inputs import example_images
from tiny import tiny_model
from tiny_training import NARROW

PAGE = (Path(__file__).parents[1] / "docs/inference.md").read_text()
READ_RESULTS, TORCHSCRIPT, ONNX = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def place(tmp_path):
    """A folder with a photo and a tiny checkpoint, and the config of it."""
    folder, config = label_place(tmp_path)
    cfg = load_config(str(config))
    model = tiny_model(**NARROW)
    torch.save({"model": {}, "teacher": model.state_dict()}, folder / "model_final.pth")
    rng = np.random.default_rng(0)
    cv2.imwrite(str(folder / "photo.jpg"), rng.integers(0, 256, (96, 128, 3), dtype=np.uint8))
    return folder, cfg


def run(program, folder):
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_results_are_read_as_the_page_does_it(tmp_path):
    images = {
        "images": [{"id": 3, "file_name": "a.jpg", "height": 9, "width": 9}],
        "categories": [{"id": 7, "name": "cat"}],
    }
    results = [{"image_id": 3, "category_id": 7, "bbox": [1, 1, 3, 3], "score": 0.9}]
    (tmp_path / "output/found").mkdir(parents=True)
    for name, content in (("images", images), ("results", results)):
        (tmp_path / f"output/found/{name}.json").write_text(json.dumps(content))
    assert "a.jpg ['cat']" in run(READ_RESULTS, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torchscript", "onnx"])
def test_exported_files_are_run_as_the_page_does_it(place, form):
    folder, cfg = place
    if form == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    cfg.MODEL.DEVICE = "cpu"
    images = example_images(cfg, folder / "photo.jpg")
    formats = ("torchscript", "onnx") if form == "onnx" else ("torchscript",)
    for name, suffix in zip(formats, ("ts", "onnx"), strict=False):
        file = folder / f"output/mine_teacher.{suffix}"
        export_traced(folder / "model_final.pth", "teacher", cfg, file, name, images)
    # Random weights are not sure of anything.
    program = TORCHSCRIPT.replace("score > 0.5", "score > 0.2")
    printed = run(program + (ONNX if form == "onnx" else ""), folder)
    assert re.search(r"^[rgb] 0\.\d\d \[[\d., ]+\]$", printed, re.MULTILINE)
    assert ("[[" in printed) == (form == "onnx")
