"""What an analysis of pseudo labels leaves in its folder: tables, figures and a summary."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from soft_teacher.analysis.localization_quality import MeasuredBoxes
from soft_teacher.analysis.quality_charts import (
    plot_iou_against_score,
    plot_iou_against_variance,
    plot_precision_recall,
)
from soft_teacher.analysis.results import write_json

SUMMARY = "summary.json"
FIGURES = ("precision_recall.png", "iou_against_score.png", "iou_against_variance.png")
BOX_COLUMNS = ("image", "class", "score", "variance", "iou", "iou_any_class", "right")


def write_quality(
    folder: Path,
    boxes: MeasuredBoxes,
    file_names: list[str],
    classes: list[str],
    curve: list[dict[str, Any]],
    summary: dict[str, Any],
) -> None:
    """Write boxes.csv, thresholds.csv, the figures and the summary.

    Args:
        folder: made if missing.
        boxes: of N images.
        file_names: N names.
        classes: names of the classes.
        curve: of `quality_at`, the thresholds close together.
        summary: see tools/analyze_pseudo_labels.py.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns = (
        [file_names[i] for i in boxes.image],
        [classes[i] for i in boxes.category],
        *(x.tolist() for x in (boxes.score, boxes.variance, boxes.iou, boxes.iou_any_class)),
        boxes.right.astype(int).tolist(),
    )
    _write_csv(folder / "boxes.csv", BOX_COLUMNS, zip(*columns, strict=True))
    _write_csv(folder / "thresholds.csv", curve[0], (x.values() for x in curve))
    pictures = (
        plot_precision_recall(curve, summary["cls_score"]),
        plot_iou_against_score(boxes, summary["cls_score"]),
        plot_iou_against_variance(boxes, summary["reg_variance"]),
    )
    for name, picture in zip(FIGURES, pictures, strict=True):
        (folder / name).write_bytes(picture)
    write_json(folder / SUMMARY, summary)


def read_quality(folder: Path) -> tuple[dict[str, Any], list[bytes]] | None:
    """The summary and the figures of a folder; None if it holds none."""
    if not (folder / SUMMARY).is_file():
        return None
    summary = json.loads((folder / SUMMARY).read_text())
    return summary, [(folder / name).read_bytes() for name in FIGURES]


def _write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    # Names of files need not be valid text.
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
