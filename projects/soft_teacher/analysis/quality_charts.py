"""The three parts of figure 3 as PNG: precision and recall, IoU against score and variance."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from soft_teacher.analysis.curves import TEXT_COLOR, as_png, style_axes
from soft_teacher.analysis.localization_quality import MeasuredBoxes
from soft_teacher.analysis.training_charts import SUPERVISED, TEACHER

SIZE = (6.4, 3.8)
OTHER_CLASS = "#999999"
# Points of a scatter plot; more would hide each other. The means are of all boxes.
MAX_POINTS = 5000
NUM_BINS = 10


def plot_precision_recall(rows: list[dict[str, Any]], threshold: float) -> bytes:
    """Figure 3a: precision and recall against the score threshold.

    Args:
        rows: of `quality_at`.
        threshold: in use, marked by a line.
    """
    figure, axes = _new_figure()
    for key, label, color in (
        ("precision", "precision: of the boxes, right", TEACHER),
        ("recall", "recall: of the objects, found", SUPERVISED),
    ):
        known = [x for x in rows if x[key] is not None]
        axes.plot(
            [x["threshold"] for x in known],
            [x[key] for x in known],
            color=color,
            label=label,
            linewidth=1.8,
        )
    _mark(axes, threshold)
    axes.set_ylim(0, 1)
    style_axes(axes, "foreground score threshold", "share")
    axes.legend(frameon=False, labelcolor=TEXT_COLOR)
    return as_png(figure)


def plot_iou_against_score(boxes: MeasuredBoxes, threshold: float) -> bytes:
    """Figure 3b: each box's IoU with the ground truth against its foreground score."""
    figure, axes = _new_figure()
    _scatter(axes, boxes.score, boxes)
    _finish(figure, axes, "foreground score", threshold)
    return as_png(figure)


def plot_iou_against_variance(boxes: MeasuredBoxes, threshold: float) -> bytes:
    """Figure 3c: each box's IoU with the ground truth against its box regression variance.

    The axis of the variance is logarithmic: most of them are small.
    """
    figure, axes = _new_figure()
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    for set_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        set_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    # Equal refined boxes have no variance, which has no place on this axis.
    boxes = boxes.where(boxes.variance > 0)
    _scatter(axes, boxes.variance, boxes)
    _finish(figure, axes, "box regression variance", threshold)
    return as_png(figure)


def binned_means(x: np.ndarray, y: np.ndarray, num_bins: int) -> list[tuple[float, float]]:
    """Median x and mean y of parts with equally many points each, from low x to high.

    Args:
        x, y: (B,).
        num_bins: number of parts; fewer if there are fewer points.
    """
    parts = np.array_split(np.argsort(x, kind="stable"), max(1, min(num_bins, len(x))))
    return [(float(np.median(x[i])), float(y[i].mean())) for i in parts if len(i)]


def _new_figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, dpi=150, layout="constrained")
    return figure, figure.add_subplot()


def _scatter(axes: Axes, x: np.ndarray, boxes: MeasuredBoxes) -> None:
    shown = np.linspace(0, len(x) - 1, min(len(x), MAX_POINTS)).astype(int)
    other = boxes.iou_any_class > boxes.iou
    for mask, color, label in (
        (other, OTHER_CLASS, "overlaps an object of another class most"),
        (~other, TEACHER, "overlaps one of its class most, or none"),
    ):
        points = shown[mask[shown]]
        axes.scatter(
            x[points], boxes.iou_any_class[points], 7, color, alpha=0.4, linewidths=0, label=label
        )
    for iou, style, label in (
        (boxes.iou, "-", "mean IoU with objects of its class"),
        (boxes.iou_any_class, "--", "mean IoU with objects of any class"),
    ):
        means = binned_means(x, iou, NUM_BINS)
        across, up = [a for a, _ in means], [b for _, b in means]
        axes.plot(across, up, style, color=SUPERVISED, linewidth=1.8, label=label)


def _finish(figure: Figure, axes: Axes, x_label: str, threshold: float) -> None:
    _mark(axes, threshold)
    axes.set_ylim(0, 1)
    style_axes(axes, x_label, "IoU with the ground truth")
    figure.legend(
        loc="outside upper left",
        ncols=2,
        frameon=False,
        labelcolor=TEXT_COLOR,
        fontsize=8,
        markerscale=2.5,
    )


def _mark(axes: Axes, threshold: float) -> None:
    axes.axvline(threshold, color=TEXT_COLOR, linewidth=0.9, linestyle=":")
    axes.annotate(
        f"threshold {threshold:g}",
        (threshold, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-4, -8),
        textcoords="offset points",
        ha="right",
        color=TEXT_COLOR,
        fontsize=8,
    )
