"""Line charts as PNG."""

import io
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

GRID_COLOR = "#e3e6ea"
TEXT_COLOR = "#3d4550"


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        label: in the legend.
        points: x -> y; a y that is not finite leaves a gap.
        color: as matplotlib knows them.
        marked: whether each point gets a dot, for lines of few points.
        dashed: for a line that may lie on another one.
    """

    label: str
    points: dict[int, float]
    color: str
    marked: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines that share axes.

    Attributes:
        title: what is shown, in a few words.
        caption: goes on where the title ends.
        y_label: caption of the y axis.
        curves: the lines; those without points are left out.
        y_max: upper end of the y axis, which starts at 0; None leaves it to the data.
    """

    title: str
    caption: str
    y_label: str
    curves: tuple[Curve, ...]
    y_max: float | None = None

    @property
    def empty(self) -> bool:
        return not any(curve.points for curve in self.curves)


def plot_chart(chart: Chart, size: tuple[float, float] = (6.4, 3.4)) -> bytes:
    """Draw a chart that is not empty, over iterations and without its title.

    Args:
        chart: what to draw.
        size: width and height in inches, of 200 pixels each.

    Returns:
        A PNG file.
    """
    figure = Figure(figsize=size, dpi=200, layout="constrained")
    axes = figure.add_subplot()
    for curve in chart.curves:
        if curve.points:
            axes.plot(
                list(curve.points),
                list(curve.points.values()),
                color=curve.color,
                label=curve.label,
                linewidth=1.8,
                linestyle="--" if curve.dashed else "-",
                marker="o" if curve.marked else None,
                markersize=4,
            )
    # With the origin among the data the margin above them is a share of the whole height.
    axes.update_datalim([(0, 0)])
    axes.autoscale_view()
    axes.set_xlim(left=0)
    axes.set_ylim(0, chart.y_max)
    style_axes(axes, "iteration", chart.y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(chart.curves) > 1:
        axes.legend(frameon=False, labelcolor=TEXT_COLOR)
    return as_png(figure)


def style_axes(axes: Axes, x_label: str, y_label: str) -> None:
    """Give axes their captions, a light grid and no frame."""
    axes.set_xlabel(x_label, color=TEXT_COLOR)
    axes.set_ylabel(y_label, color=TEXT_COLOR)
    axes.grid(color=GRID_COLOR, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=TEXT_COLOR, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID_COLOR)


def as_png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()
