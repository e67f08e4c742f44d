"""The tutorial's own commands, in their order, on a few tiny photographs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
TUTORIAL = (ROOT / "docs/tutorial.md").read_text()
# What makes the training short; everything else is as the tutorial has it.
SHORT = {
    "SOLVER.MAX_ITER": "6",
    "SOLVER.STEPS": "(5,)",
    "SOLVER.BASE_LR": "0.0001",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.IMS_PER_BATCH_UNLABELED": "2",
    "SOLVER.CHECKPOINT_PERIOD": "6",
    "SOFT_TEACHER.BURN_IN_ITERS": "2",
    "TEST.EVAL_PERIOD": "6",
    "MODEL.TIMM.WEIGHTS": "",
}


def commands():
    """Indented shell commands of the tutorial, continued lines joined."""
    text = TUTORIAL.replace("\\\n", " ")
    return [line.split() for line in re.findall(r"^    (python .*)$", text, re.MULTILINE)]


def code(language):
    (block,) = re.findall(rf"```{language}\n(.*?)```", TUTORIAL, re.DOTALL)
    return block


def write_photographs(folder, count, seed, annotated):
    """Squares of three colors on noise, in COCO's format if they are annotated."""
    random = np.random.default_rng(seed)
    (folder / "deeper").mkdir(parents=True)
    images, annotations = [], []
    for i in range(count):
        name = f"deeper/{i}.jpg" if i % 2 else f"{i}.jpg"
        pixels = random.integers(0, 80, (96, 128, 3), dtype=np.uint8)
        x, y = (int(v) for v in random.integers(0, 50, 2))
        pixels[y : y + 40, x : x + 30, i % 3] = 255
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": i, "file_name": name, "width": 128, "height": 96})
        annotation = {"id": i, "image_id": i, "category_id": 5 - i % 3, "bbox": [x, y, 30, 40]}
        annotations.append(annotation)
    categories = [{"id": 5 - k, "name": ("red", "green", "blue")[k]} for k in range(3)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    if annotated:
        folder.with_suffix(".json").write_text(json.dumps(content))


@pytest.fixture
def place(tmp_path):
    """A working directory with the project's files and the tutorial's my_data."""
    for name in ("configs", "tools", "train_net.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name, count, annotated in (("labeled", 6, True), ("unlabeled", 6, False), ("val", 3, True)):
        write_photographs(tmp_path / "my_data" / name, count, count, annotated)
    (tmp_path / "my_data/config.yaml").write_text(code("yaml"))
    return tmp_path


def run(arguments, place):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "projects"),
        "XDG_CACHE_HOME": str(place / "cache"),
    }
    done = subprocess.run(
        arguments, cwd=place, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.slow
def test_the_tutorial_leads_from_photographs_to_an_exported_detector(place):
    pytest.importorskip("timm")
    scripts = []
    for _, script, *arguments in commands():
        scripts.append(Path(script).name)
        short = [x for pair in SHORT.items() for x in pair] if script == "train_net.py" else []
        run([sys.executable, script, *arguments, *short], place)
    assert scripts == [
        *("check_dataset.py", "check_dataset.py", "visualize_data.py"),
        *("train_net.py", "train_net.py", "export_model.py", "predict.py"),
    ]
    results = json.loads((place / "output/found/images.json").read_text())
    assert len(results["images"]) == 6
    assert {x["name"] for x in results["categories"]} == {"red", "green", "blue"}
    Image.new("RGB", (90, 70)).save(place / "photo.jpg")
    assert "tensor" in run([sys.executable, "-c", code("python")], place)
    last = json.loads((place / "output/mine/metrics.json").read_text().splitlines()[-1])
    assert {"student/bbox/AP", "teacher/bbox/AP"} <= last.keys()
