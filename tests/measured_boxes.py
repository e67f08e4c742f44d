"""An analysis of three made-up pseudo boxes, for tests of its files and pages."""

import numpy as np

from soft_teacher.analysis.localization_quality import KINDS, MeasuredBoxes, quality_at
from soft_teacher.analysis.quality_files import write_quality


def measure(value, low, high):
    return {"value": value, "interval": [low, high]}


def correlation(kind=KINDS[0], above=0.5, advantage=(0.2, 0.1, 0.3)):
    return {
        "kind": kind,
        "above": above,
        "boxes": 7,
        "score": measure(0.4, 0.3, 0.5),
        "variance": measure(-0.6, -0.7, -0.5),
        "advantage": measure(*advantage),
    }


def boxes():
    return MeasuredBoxes(
        image=np.array([0, 0, 1]),
        category=np.array([0, 1, 0]),
        score=np.array([0.9, 0.6, 0.3]),
        variance=np.array([0.01, 0.0, 0.03]),
        iou=np.array([0.8, 0.0, 0.5]),
        iou_any_class=np.array([0.8, 0.7, 0.5]),
        right=np.array([True, False, True]),
        num_objects=np.array([1, 2]),
    )


def summary(name="set"):
    return {
        "weights": name,
        "model": "teacher",
        "sets": name,
        "images": 2,
        "images_in_sets": 5,
        "unreadable_images": "none",
        "objects": 3,
        "boxes": 3,
        "seed": 0,
        "resamples": 10,
        "cls_score": 0.9,
        "reg_variance": 0.02,
        "num_jitter": 10,
        "jitter_scale": 0.06,
        "variance_definition": "per_axis",
        "thresholds": quality_at(boxes(), [0.5, 0.95]),
        "correlations": [correlation(kind, above) for kind in KINDS for above in (0.05, 0.5, 0.9)],
    }


def write_made_up_quality(folder, name="set"):
    """All files of an analysis; `name` is that of the weights, the set, a class and an image."""
    curve = quality_at(boxes(), [0.1, 0.5, 0.95])
    file_names = [f"{name}.png", 'a,"b".png']
    write_quality(folder, boxes(), file_names, [name, "two"], curve, summary(name))
