"""A table of trainings as a picture."""

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from soft_teacher.analysis.curves import GRID_COLOR, TEXT_COLOR
from soft_teacher.analysis.results import DDOF
from soft_teacher.analysis.suite_results import MAIN_METRIC, MODELS, RowResult
from soft_teacher.analysis.training_charts import STUDENT, SUPERVISED, TEACHER

COLORS = dict(zip(MODELS, (STUDENT, TEACHER), strict=True))
INCHES_PER_ROW = 0.45


def draw_rows(title: str, rows: Sequence[RowResult]) -> bytes:
    """One line for each row: means with deviations, every repetition, and the paper's number.

    Args:
        title: above the picture.
        rows: of the table, from top to bottom.

    Returns:
        A PNG file.
    """
    height = 1.6 + INCHES_PER_ROW * len(rows)
    figure = Figure(figsize=(7.2, height), dpi=200, layout="constrained")
    axes = figure.add_subplot()
    for offset, model in zip((-0.12, 0.12), MODELS, strict=True):
        _draw_model(axes, rows, model, offset)
    _draw_paper(axes, rows)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(f"{MAIN_METRIC}, %: mean and standard deviation (n - {DDOF})", color=TEXT_COLOR)
    axes.set_title(title, color=TEXT_COLOR, fontsize=10, wrap=True)
    axes.grid(color=GRID_COLOR, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=TEXT_COLOR, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID_COLOR)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(frameon=False, labelcolor=TEXT_COLOR, loc="outside lower center", ncols=3)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _draw_model(axes: Axes, rows: Sequence[RowResult], model: str, offset: float) -> None:
    numbers = [(y + offset, row.number(model, MAIN_METRIC)) for y, row in enumerate(rows)]
    known = [(y, number) for y, number in numbers if number is not None]
    if not known:
        return
    axes.errorbar(
        [number.mean for _, number in known],
        [y for y, _ in known],
        xerr=[number.std or 0.0 for _, number in known],
        color=COLORS[model],
        fmt="o",
        markersize=6,
        capsize=3,
        label=model,
    )
    values = [
        (run[model][MAIN_METRIC], y + offset)
        for y, row in enumerate(rows)
        for run in row.runs.values()
        if MAIN_METRIC in run.get(model, {})
    ]
    axes.scatter(*zip(*values, strict=True), color=TEXT_COLOR, s=6, zorder=3)


def _draw_paper(axes: Axes, rows: Sequence[RowResult]) -> None:
    known = [(y, row.paper[MAIN_METRIC]) for y, row in enumerate(rows) if MAIN_METRIC in row.paper]
    if not known:
        return
    axes.errorbar(
        [number.mean for _, number in known],
        [y for y, _ in known],
        xerr=[number.std or 0.0 for _, number in known],
        color=SUPERVISED,
        fmt="D",
        markerfacecolor="none",
        markersize=6,
        capsize=3,
        label="paper, on COCO",
    )
