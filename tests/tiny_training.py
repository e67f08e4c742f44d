"""Trainings of a few iterations on a few small images, and how their results are compared."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tiny import tiny_config

NUM_LABELED, NUM_UNLABELED, NUM_VAL = 4, 6, 3


def write_set(folder: Path, name: str, num_images: int, seed: int) -> list[str]:
    """Bright squares on noise, as a COCO set; its entry for DATASETS.CUSTOM."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for i in range(num_images):
        pixels = rng.integers(0, 80, (64, 64, 3), dtype=np.uint8)
        x, y, side = rng.integers(4, 30), rng.integers(4, 30), rng.integers(14, 28)
        pixels[y : y + side, x : x + side, i % 3] = 255
        Image.fromarray(pixels).save(folder / f"{name}_{i}.png")
        images.append({"id": i, "file_name": f"{name}_{i}.png", "width": 64, "height": 64})
        annotations.append(
            {
                "id": i + 1,
                "image_id": i,
                "category_id": 1 + i % 3,
                "bbox": [int(x), int(y), int(side), int(side)],
                "area": int(side * side),
                "iscrowd": 0,
            }
        )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": "rgb"[k]} for k in range(3)],
    }
    (folder / f"{name}.json").write_text(json.dumps({"info": {}, **content}))
    return [f"test_{folder.name}_{name}", str(folder / f"{name}.json"), str(folder)]


def write_config(folder: Path, **overrides) -> Path:
    """Images in `folder` and a config of six iterations for them; keys with "__" for ".".

    Evaluation and checkpoint come after every two iterations.
    """
    sets = [
        write_set(folder, name, count, seed)
        for seed, (name, count) in enumerate(
            {"labeled": NUM_LABELED, "unlabeled": NUM_UNLABELED, "val": NUM_VAL}.items()
        )
    ]
    names = [x[0] for x in sets]
    keys = {
        "DATASETS.CUSTOM": sets,
        "DATASETS.TRAIN": (names[0],),
        "DATASETS.UNLABELED": (names[1],),
        "DATASETS.TEST": (names[2],),
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.MIN_SIZE_TRAIN": (64,),
        "INPUT.MIN_SIZE_TEST": 64,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.IMS_PER_BATCH_UNLABELED": 2,
        "SOLVER.BASE_LR": 0.005,
        "SOLVER.MAX_ITER": 6,
        "SOLVER.STEPS": (),
        "SOLVER.WARMUP_ITERS": 3,
        "SOLVER.CHECKPOINT_PERIOD": 2,
        "TEST.EVAL_PERIOD": 2,
        "VIS_PERIOD": 3,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "SOFT_TEACHER.PSEUDO_LABELS.MIN_SCORE": 0.1,
        "SOFT_TEACHER.PSEUDO_LABELS.CLS_SCORE": 0.1,
        "SOFT_TEACHER.PSEUDO_LABELS.RPN_SCORE": 0.1,
        "SOFT_TEACHER.PSEUDO_LABELS.REG_VARIANCE": 0.5,
    }
    keys.update({k.replace("__", "."): v for k, v in overrides.items()})
    path = folder / "config.yaml"
    path.write_text(tiny_config(**keys).dump())
    return path


# A backbone of few weights, whose checkpoints are written in no time.
NARROW = {
    "MODEL__RESNETS__DEPTH": 50,
    "MODEL__RESNETS__STEM_OUT_CHANNELS": 8,
    "MODEL__RESNETS__RES2_OUT_CHANNELS": 16,
    "MODEL__RESNETS__WIDTH_PER_GROUP": 4,
}


def checkpoint(output: Path, name: str = "model_final.pth") -> dict:
    return torch.load(output / name, weights_only=True)


def unmoved(before: dict, after: dict, prefixes: str | tuple[str, ...]) -> list[str]:
    """Which weights of convolutions, linear layers and tables are the same in two states.

    Args:
        before: of a model.
        after: of the same one, later.
        prefixes: of the names that are looked at.
    """
    looked_at = [
        name
        for name, tensor in before.items()
        if name.startswith(prefixes) and tensor.is_floating_point() and tensor.ndim > 1
    ]
    assert looked_at, prefixes
    return [name for name in looked_at if torch.equal(before[name], after[name])]


def assert_same(a, b, where: str = "") -> None:
    """Bit equality of nested dicts, lists, tensors and numbers."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for k in a:
            assert_same(a[k], b[k], f"{where}.{k}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b or (a != a and b != b), where
