"""A small labeled set of real files, and a config that names it."""

import json
import uuid

import numpy as np
import pytest
from detectron2.config import get_cfg
from PIL import Image

from soft_teacher.config import add_soft_teacher_config

# (width, height) of each image; orientations are mixed on purpose.
SIZES = [(64, 48), (40, 60), (50, 50), (72, 40), (44, 66), (60, 45), (48, 64)]


def coco_content(sizes=SIZES):
    """A COCO file of one object an image, of two classes whose ids have a gap."""
    return {
        "info": {"description": "test"},
        "categories": [{"id": 3, "name": "box"}, {"id": 7, "name": "ball"}],
        "images": [
            {"id": 10 + i, "file_name": f"{i}.png", "width": w, "height": h}
            for i, (w, h) in enumerate(sizes)
        ],
        "annotations": [
            {
                "id": 1 + i,
                "image_id": 10 + i,
                "category_id": (3, 7)[i % 2],
                "bbox": [5, 7, 21, 15],
                "area": 315,
                "iscrowd": 0,
            }
            for i in range(len(sizes))
        ],
    }


@pytest.fixture
def coco(tmp_path):
    """Folder with images/ and annotations.json."""
    (tmp_path / "images").mkdir()
    random = np.random.default_rng(0)
    for i, (w, h) in enumerate(SIZES):
        image = random.integers(0, 256, (h, w, 3), dtype=np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "annotations.json").write_text(json.dumps(coco_content()))
    return tmp_path


@pytest.fixture
def cfg(coco):
    """Config whose labeled and unlabeled sets are the small one, under a name of its own."""
    cfg = get_cfg()
    add_soft_teacher_config(cfg)
    name = f"small_{uuid.uuid4().hex}"
    cfg.DATASETS.CUSTOM = [[name, str(coco / "annotations.json"), str(coco / "images")]]
    cfg.DATASETS.TRAIN = (name,)
    cfg.DATASETS.UNLABELED = (name,)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    cfg.INPUT.MIN_SIZE_TRAIN = (40, 90)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    cfg.INPUT.MAX_SIZE_TRAIN = 120
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.IMS_PER_BATCH_UNLABELED = 3
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 5
    return cfg
