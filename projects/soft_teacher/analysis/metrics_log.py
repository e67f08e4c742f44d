"""The numbers that a training leaves in OUTPUT_DIR/metrics.json."""

import json
import math
from pathlib import Path
from typing import Any

Metrics = dict[str, dict[int, float]]
"""Name of a scalar -> iteration (from 0) -> value, iterations ascending."""

AP_NAMES = ("AP", "AP50", "AP75")


def read_entries(path: Path) -> list[dict[str, Any]]:
    """The lines of the file in the order they were written, each a dict of scalars.

    The file may still be growing: a last line without its end is left out. It may not exist yet.

    Raises:
        ValueError: a line is not JSON.
    """
    if not path.is_file():
        return []
    complete, _, _ = path.read_text().rpartition("\n")
    entries = []
    for number, line in enumerate(complete.splitlines(), start=1):
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number} is not JSON ({error}); remove that line."
            ) from error
    return entries


def read_metrics(path: Path) -> Metrics:
    """All scalars of the file.

    A resumed training repeats the iterations after its checkpoint: the later value counts.
    """
    metrics: Metrics = {}
    for entry in read_entries(path):
        for name, value in entry.items():
            if name != "iteration":
                metrics.setdefault(name, {})[entry["iteration"]] = value
    return {name: dict(sorted(points.items())) for name, points in metrics.items()}


def final_ap(metrics: Metrics, model: str) -> dict[str, float | None]:
    """The last evaluation of a model.

    Args:
        metrics: of one training.
        model: "student" or "teacher".

    Returns:
        AP, AP50 and AP75 in percent; None where there was no detection at all to evaluate.

    Raises:
        ValueError: the model was never evaluated.
    """
    result = {}
    for name in AP_NAMES:
        points = metrics.get(f"{model}/bbox/{name}")
        if not points:
            raise ValueError(
                f"metrics.json holds no evaluation of the {model} on one data set; look at "
                "DATASETS.TEST and SOFT_TEACHER.EMA.ENABLED in the run's config."
            )
        value = list(points.values())[-1]
        result[name] = value if math.isfinite(value) else None
    return result


def sum_of_losses(metrics: Metrics, unlabeled: bool) -> dict[int, float]:
    """The losses on labeled or on unlabeled images, weighted as trained, added up.

    Returns:
        iteration -> loss.
    """
    total: dict[int, float] = {}
    for name, points in metrics.items():
        if name.startswith("loss_") and name.endswith("_unsup") == unlabeled:
            for iteration, value in points.items():
                total[iteration] = total.get(iteration, 0.0) + value
    return dict(sorted(total.items()))
