"""One labeled and one unlabeled image on disk, for a training of a few steps with any config."""

import json
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from PIL import Image

# COCO's most frequent size; resized to the largest scale it fills what a config allows.
HEIGHT, WIDTH = 480, 640
NUM_OBJECTS = 10
SETS = ("labeled", "unlabeled")


def write_images(folder: Path, num_classes: int, seed: int) -> dict[str, Path]:
    """Write an image of noise for each of `SETS`, and a COCO file with boxes, masks and scores.

    Returns:
        Name of the set -> its COCO file. Images lie beside it.
    """
    rng = np.random.default_rng(seed)
    files = {}
    for name in SETS:
        pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.jpg")
        content = {
            "info": {},
            "images": [{"id": 1, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH}],
            "categories": [{"id": k + 1, "name": f"class {k}"} for k in range(num_classes)],
            "annotations": [_draw_object(rng, i + 1, num_classes) for i in range(NUM_OBJECTS)],
        }
        files[name] = folder / f"{name}.json"
        files[name].write_text(json.dumps(content))
    return files


def _draw_object(rng: np.random.Generator, number: int, num_classes: int) -> dict:
    """A box with sides of 10 to 50 % of the image's, with itself as mask and a sure score."""
    sides = rng.uniform(0.1, 0.5, 2) * (WIDTH, HEIGHT)
    (x, y), (width, height) = rng.uniform(0, (WIDTH, HEIGHT) - sides), sides
    corners = [x, y, x + width, y, x + width, y + height, x, y + height]
    return {
        "id": number,
        "image_id": 1,
        "category_id": int(rng.integers(num_classes)) + 1,
        "bbox": [x, y, width, height],
        "segmentation": [corners],
        "area": width * height,
        "iscrowd": 0,
        "score": 0.99,
    }


def with_made_up_images(cfg: CfgNode, files: dict[str, Path]) -> CfgNode:
    """A copy of the config that trains on one image of each kind, at its largest scale."""
    cfg = cfg.clone()
    cfg.defrost()
    labeled, unlabeled = (f"rehearsal_{name}" for name in SETS)
    folder = files[SETS[0]].parent
    cfg.DATASETS.CUSTOM = [
        [f"rehearsal_{name}", str(file), str(folder)] for name, file in files.items()
    ]
    cfg.DATASETS.TRAIN, cfg.DATASETS.UNLABELED, cfg.DATASETS.TEST = (labeled,), (unlabeled,), ()
    if cfg.MODEL.ROI_HTC.SEMANTIC_ON:
        blank = Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8))
        blank.save(folder / f"{SETS[0]}.png")
        cfg.DATASETS.SEMANTIC_ROOT = str(folder)
    if cfg.SOFT_TEACHER.PSEUDO_LABELS.FILES:
        cfg.SOFT_TEACHER.PSEUDO_LABELS.FILES = (str(files[SETS[1]]),)
    cfg.INPUT.MIN_SIZE_TRAIN = (max(cfg.INPUT.MIN_SIZE_TRAIN),)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    # In this process, whose memory is measured.
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.OUTPUT_DIR = str(folder / "output")
    return cfg
