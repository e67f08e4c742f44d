"""A small labeled set of real files, and a config that names it."""

import json
import uuid

import numpy as np
import pytest
from detectron2.config import get_cfg
from PIL import Image

from small_coco import SIZES, coco_content
from soft_teacher.config import add_soft_teacher_config


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
