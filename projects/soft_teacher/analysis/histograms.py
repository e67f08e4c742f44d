"""Histograms as PNG."""

import io
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from soft_teacher.analysis.curves import GRID_COLOR, TEXT_COLOR
from soft_teacher.data.set_statistics import Histogram


@dataclass(frozen=True)
class HistogramPicture:
    """What a picture shows.

    Attributes:
        title: in a few words.
        caption: goes on where the title ends.
        x_label: caption of the x axis.
        y_label: what is counted.
        parts: (label, color, histogram); the same edges in all.
        logarithmic: whether each step along the x axis is a factor.
        marks: x -> text of a vertical line there.
    """

    title: str
    caption: str
    x_label: str
    y_label: str
    parts: tuple[tuple[str, str, Histogram], ...]
    logarithmic: bool = False
    marks: tuple[tuple[float, str], ...] = ()


def plot_histogram(picture: HistogramPicture, size: tuple[float, float] = (6.4, 3.0)) -> bytes:
    """Draw a histogram without its title.

    Args:
        picture: what to draw.
        size: width and height in inches, of 150 pixels each.

    Returns:
        A PNG file.
    """
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes = figure.add_subplot()
    if picture.logarithmic:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(_plain_number))
    several = len(picture.parts) > 1
    for label, color, histogram in picture.parts:
        if several:
            axes.stairs(histogram.counts, histogram.edges, color=color, label=label, linewidth=1.8)
        else:
            widths = np.diff(histogram.edges)
            left = histogram.edges[:-1]
            axes.bar(left, histogram.counts, widths, align="edge", color=color, edgecolor="white")
    _mark(axes, picture.marks)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.02)
    axes.set_xlabel(picture.x_label, color=TEXT_COLOR)
    axes.set_ylabel(picture.y_label, color=TEXT_COLOR)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=GRID_COLOR, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=TEXT_COLOR, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID_COLOR)
    if several:
        axes.legend(frameon=False, labelcolor=TEXT_COLOR)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _mark(axes: Axes, marks: tuple[tuple[float, str], ...]) -> None:
    for x, text in marks:
        axes.axvline(x, color=TEXT_COLOR, linewidth=0.9, linestyle=":")
        axes.annotate(
            text,
            (x, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -10),
            textcoords="offset points",
            color=TEXT_COLOR,
            fontsize=8,
        )


def _plain_number(value: float, position: int) -> str:
    """Powers of two as people write ratios and pixels: 1/4, 1, 64."""
    return f"{value:g}" if value >= 1 else f"1/{1 / value:g}"
