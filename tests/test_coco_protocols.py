"""COCO's two protocols from the files as they are published, in small."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import MetadataCatalog
from PIL import Image

ROOT = Path(__file__).parents[1]
READ = """
import json, sys
from soft_teacher import load_config
from soft_teacher.data import labeled_records, unlabeled_records
found = {}
for name in sys.argv[1:]:
    cfg = load_config(name, ["DATASETS.FOLD", "2"])
    labeled, unlabeled = labeled_records(cfg), unlabeled_records(cfg)
    assert not any("annotations" in record for record in unlabeled)
    found[name] = [[x["image_id"] for x in labeled], [x["image_id"] for x in unlabeled]]
print(json.dumps(found))
"""


@pytest.fixture
def datasets(tmp_path):
    """What $DETECTRON2_DATASETS holds: 200 images of train2017, 7 of unlabeled2017."""
    metadata = MetadataCatalog.get("coco_2017_train")
    ids = {v: k for k, v in metadata.thing_dataset_id_to_contiguous_id.items()}
    categories = [{"id": ids[i], "name": n} for i, n in enumerate(metadata.thing_classes)]
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)

    def images(name, numbers):
        (folder / name).mkdir()
        Image.new("RGB", (8, 6)).save(folder / name / "one.jpg")
        for i in numbers:
            os.link(folder / name / "one.jpg", folder / name / f"{i:012}.jpg")
        return [{"id": i, "file_name": f"{i:012}.jpg", "height": 6, "width": 8} for i in numbers]

    random = np.random.default_rng(0)
    train = images("train2017", sorted(random.choice(10000, 200, replace=False).tolist()))
    annotations = [
        {
            "id": k,
            "image_id": image["id"],
            "category_id": categories[k % 80]["id"],
            "bbox": [1, 1, 4, 3],
            "area": 12,
            "iscrowd": 0,
        }
        for k, image in enumerate(train)
    ]
    content = {"images": train, "annotations": annotations, "categories": categories}
    (folder / "annotations/instances_train2017.json").write_text(json.dumps(content))
    unlabeled = {"images": images("unlabeled2017", range(20001, 20008)), "licenses": []}
    path = folder / "annotations/image_info_unlabeled2017.json"
    path.write_text(json.dumps(unlabeled))
    return tmp_path


def run(datasets, *arguments):
    environment = {**os.environ, "DETECTRON2_DATASETS": str(datasets)}
    environment["PYTHONPATH"] = str(ROOT / "projects")
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_both_protocols_need_nothing_but_the_published_files_and_one_command(datasets):
    annotations = datasets / "coco/annotations"
    run(datasets, "tools/split_dataset.py", annotations / "instances_train2017.json")
    full = "configs/coco/soft_teacher_R_50_FPN_full_720k.yaml"
    tenth = "configs/coco/soft_teacher_R_50_FPN_10pct.yaml"
    found = json.loads(run(datasets, "-W", "ignore", "-c", READ, full, tenth).splitlines()[-1])
    assert len(found[full][0]) == 200 and found[full][1] == list(range(20001, 20008))
    labeled, unlabeled = found[tenth]
    chosen = (annotations / "semi_supervised/instances_train2017.2@10.ids.txt").read_text()
    assert labeled == [int(x) for x in chosen.split()] and len(labeled) == 20
    assert sorted(labeled + unlabeled) == found[full][0]
