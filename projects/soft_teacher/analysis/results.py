"""AP of the supervised baseline and of Soft Teacher, over one or more seeds."""

import importlib
import json
import platform
import statistics
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from soft_teacher.analysis.metrics_log import AP_NAMES

AveragePrecision = dict[str, float | None]
"""AP, AP50 and AP75 in percent; None where there was nothing to evaluate."""

EQUAL_TIME = "supervised_equal_time"
TITLES = {
    "supervised": "Supervised",
    EQUAL_TIME: "Supervised, equal time",
    "student": "Soft Teacher, student",
    "teacher": "Soft Teacher, teacher",
    "gain": "Gain of the teacher",
    "gain_equal_time": "Gain at equal time",
}
PACKAGES = ("torch", "torchvision", "detectron2", "timm", "numpy", "soft_teacher")
# Deviation of a sample: the sum of squares is divided by the number of seeds less one.
DDOF = 1


def ap_by_model(results: dict[str, Any]) -> dict[str, AveragePrecision]:
    """The AP of every model in the results of one seed, and the gains of the teacher."""
    teacher = results["soft_teacher"]["teacher"]
    rows = {
        "supervised": results["supervised"],
        "student": results["soft_teacher"]["student"],
        "teacher": teacher,
        "gain": _difference(teacher, results["supervised"]),
    }
    if EQUAL_TIME in results:
        rows[EQUAL_TIME] = results[EQUAL_TIME]
        rows["gain_equal_time"] = _difference(teacher, results[EQUAL_TIME])
    return {key: rows[key] for key in TITLES if key in rows}


def summarize_seeds(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds.

    Args:
        runs: the results of each seed.

    Returns:
        {"runs", "mean", "std", "ddof"}; mean and std are {model: {"AP", "AP50", "AP75"}}, the
        gains paired by seed. An entry is None where a seed has none, a std of one seed also.
    """
    tables = [ap_by_model(run) for run in runs]
    mean: dict[str, AveragePrecision] = {}
    std: dict[str, AveragePrecision] = {}
    for model in tables[0]:
        mean[model], std[model] = {}, {}
        for name in AP_NAMES:
            values = [table[model][name] for table in tables]
            known = None not in values
            mean[model][name] = statistics.mean(values) if known else None
            std[model][name] = statistics.stdev(values) if known and len(values) > DDOF else None
    return {"runs": list(runs), "mean": mean, "std": std, "ddof": DDOF}


def ap_rows(
    table: dict[str, AveragePrecision], std: dict[str, AveragePrecision] | None = None
) -> list[list[str]]:
    """Rows of text: title, AP, AP50, AP75; with "±" where a deviation is known."""
    rows = []
    for model, values in table.items():
        signed = model.startswith("gain")
        cells = [
            format_ap(values[name], std[model][name] if std else None, signed) for name in AP_NAMES
        ]
        rows.append([TITLES[model], *cells])
    return rows


def format_ap(value: float | None, std: float | None = None, signed: bool = False) -> str:
    """An AP with one decimal, "-" for None."""
    if value is None:
        return "-"
    text = f"{value:+.1f}" if signed else f"{value:.1f}"
    return text if std is None else f"{text} ± {std:.1f}"


def format_seconds(seconds: float) -> str:
    """As h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def text_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns for the terminal, the first to the left and the others to the right."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0])]
            + [x.rjust(w) for x, w in zip(line[1:], widths[1:], strict=True)]
        )
        for line in lines
    )


def versions() -> dict[str, str]:
    """Versions of what decides the results."""
    found = {name: importlib.import_module(name).__version__ for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write strict JSON, which knows no NaN; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def _difference(a: AveragePrecision, b: AveragePrecision) -> AveragePrecision:
    return {
        name: None if a[name] is None or b[name] is None else a[name] - b[name] for name in AP_NAMES
    }
