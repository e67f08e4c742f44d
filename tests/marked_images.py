"""A small COCO set of images with one rectangle of a color of its own, and a config for it."""

import json
import uuid
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode, get_cfg
from PIL import Image

from soft_teacher import add_soft_teacher_config

MARK = (250, 40, 30)
BACKGROUND = (30, 90, 200)
CLASSES = ("box", "ball")
# (width, height) and the rectangle as xywh, for each image.
SCENES = [
    ((96, 72), (20, 16, 40, 30)),
    ((60, 90), (14, 30, 28, 40)),
    ((80, 80), (31, 9, 33, 44)),
    ((72, 96), (22, 40, 30, 25)),
]


def write_marked_set(folder: Path, name: str, names: list[str] | None = None) -> list[str]:
    """Write images and annotations; returns the set's entry for DATASETS.CUSTOM.

    Args:
        folder: where to.
        name: of the annotation file.
        names: of the image files.
    """
    names = names or [f"{name}_{i}.png" for i in range(len(SCENES))]
    images, annotations = [], []
    for i, ((width, height), (x, y, w, h)) in enumerate(SCENES):
        pixels = np.full((height, width, 3), BACKGROUND, np.uint8)
        pixels[y : y + h, x : x + w] = MARK
        Image.fromarray(pixels).save(folder / names[i])
        images.append({"id": i, "file_name": names[i], "width": width, "height": height})
        corners = [x, y, x + w, y, x + w, y + h, x, y + h]
        annotations.append(
            {
                "id": i + 1,
                "image_id": i,
                "category_id": 1 + i % 2,
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
                "segmentation": [corners],
            }
        )
    content = {
        "info": {},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": x} for k, x in enumerate(CLASSES)],
    }
    file = folder / f"{name}.json"
    file.write_text(json.dumps(content))
    return [f"{name}_{uuid.uuid4().hex}", str(file), str(folder)]


def change_annotations(file: str, change) -> None:
    """Rewrite a set's annotation file; `change` alters its content in place."""
    content = json.loads(Path(file).read_text())
    change(content)
    Path(file).write_text(json.dumps(content))


def marked_config(folder: Path) -> CfgNode:
    """Config with a labeled and an unlabeled set; views keep their colors and are not erased."""
    cfg = get_cfg()
    add_soft_teacher_config(cfg)
    sets = [write_marked_set(folder, name) for name in ("labeled", "unlabeled")]
    cfg.DATASETS.CUSTOM = sets
    cfg.DATASETS.TRAIN, cfg.DATASETS.UNLABELED = (sets[0][0],), (sets[1][0],)
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(CLASSES)
    cfg.INPUT.MIN_SIZE_TRAIN = (60, 200)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    cfg.INPUT.AUG.COLOR = False
    cfg.INPUT.AUG.ERASE_PATCHES = (0, 0)
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.IMS_PER_BATCH_UNLABELED = 3
    cfg.SEED = 3
    return cfg
