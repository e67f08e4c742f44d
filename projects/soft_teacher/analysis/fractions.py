"""AP against the labeled fraction (figure 1 of the paper), from a table of trainings."""

import csv
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from soft_teacher.analysis.curves import TEXT_COLOR, as_png, style_axes
from soft_teacher.analysis.results import DDOF

COLUMNS = ("set", "percent", "method", "seed", "AP")
# From a palette (Okabe and Ito) that color-blind people can tell apart.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


@dataclass(frozen=True)
class Point:
    """AP in percent over several trainings.

    Attributes:
        mean: over the trainings.
        std: standard deviation of the sample; None for one training.
        count: number of trainings.
    """

    mean: float
    std: float | None
    count: int


Fractions = dict[str, dict[str, dict[float, Point]]]
"""Set -> method -> percent of the labels -> AP."""

PAPER: Fractions = {
    "coco_2017_val": {
        f"{method} (paper, table 2)": {
            percent: Point(*number, count=5)
            for percent, number in zip((1.0, 5.0, 10.0), numbers, strict=True)
        }
        for method, numbers in {
            "supervised": ((10.0, 0.26), (20.92, 0.15), (26.94, 0.111)),
            "STAC": ((13.97, 0.35), (24.38, 0.12), (28.64, 0.21)),
            "Soft Teacher": ((20.46, 0.39), (30.74, 0.08), (34.04, 0.14)),
        }.items()
    }
}
"""Means and deviations over five folds of COCO."""


def read_fractions(path: Path) -> Fractions:
    """Means and deviations over the seeds of a CSV file.

    Args:
        path: with the columns set, percent, method, seed and AP; other columns are ignored.

    Raises:
        ValueError: a column or a value is missing or wrong, or a training stands there twice.
    """
    values: dict[tuple[str, str, float], dict[str, float]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [x for x in COLUMNS if x not in (reader.fieldnames or [])]
        if missing:
            raise ValueError(
                f"{path} has no column {', '.join(missing)}; name it in the first line."
            )
        for row in reader:
            place = f"line {reader.line_num} of {path}"
            key = (row["set"], row["method"], _number(row, "percent", place))
            seeds = values.setdefault(key, {})
            if row["seed"] in seeds:
                raise ValueError(f"Seed {row['seed']} of {key} is there twice: {place}.")
            seeds[row["seed"]] = _number(row, "AP", place)
    if not values:
        raise ValueError(f"{path} holds no result.")
    fractions: Fractions = {}
    for (name, method, percent), seeds in values.items():
        numbers = list(seeds.values())
        std = statistics.stdev(numbers) if len(numbers) > DDOF else None
        points = fractions.setdefault(name, {}).setdefault(method, {})
        points[percent] = Point(statistics.mean(numbers), std, len(numbers))
    return fractions


def _number(row: dict[str, str | None], column: str, place: str) -> float:
    try:
        number = float(row[column] or "")
    except ValueError:
        number = math.nan
    if not 0 <= number <= 100 or (column == "percent" and number == 0):
        raise ValueError(f"{column} is {row[column]!r} in {place}; it must be a number of percent.")
    return number


def with_paper(fractions: Fractions) -> Fractions:
    """The same with the paper's numbers of table 2 beside, as methods of their own."""
    names = [*fractions, *(x for x in PAPER if x not in fractions)]
    return {name: {**fractions.get(name, {}), **PAPER.get(name, {})} for name in names}


def plot_fractions(fractions: Fractions) -> bytes:
    """One panel for each set: a line for each method, with bars of one deviation.

    Returns:
        A PNG file.
    """
    figure = Figure(figsize=(0.4 + 5.0 * len(fractions), 4.0), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(fractions), squeeze=False)[0]
    for axes, (name, methods) in zip(panels, fractions.items(), strict=True):
        _draw_set(axes, methods)
        axes.set_title(name.replace("$", r"\$"), color=TEXT_COLOR, fontsize=10)
    return as_png(figure)


def _draw_set(axes: Axes, methods: dict[str, dict[float, Point]]) -> None:
    percents = sorted({percent for points in methods.values() for percent in points})
    for number, (method, points) in enumerate(methods.items()):
        points = dict(sorted(points.items()))
        axes.errorbar(
            list(points),
            [x.mean for x in points.values()],
            yerr=[math.nan if x.std is None else x.std for x in points.values()],
            color=COLORS[number % len(COLORS)],
            marker="o",
            markersize=4,
            linewidth=1.8,
            capsize=3,
            # Between dollars, matplotlib would read a formula.
            label=method.replace("$", r"\$"),
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(percents))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
    axes.set_ylim(bottom=0)
    style_axes(axes, "labeled images", "AP, %")
    axes.legend(frameon=False, labelcolor=TEXT_COLOR, loc="lower right", fontsize=8)


def fraction_rows(fractions: Fractions) -> list[list[str]]:
    """Rows of text: set and method, percent, AP with its deviation, number of trainings."""
    return [
        [
            f"{name}, {method}",
            f"{percent:g} %",
            f"{x.mean:.2f}" if x.std is None else f"{x.mean:.2f} ± {x.std:.2f}",
            str(x.count),
        ]
        for name, methods in fractions.items()
        for method, points in methods.items()
        for percent, x in points.items()
    ]
