"""A table of trainings as Markdown and CSV."""

import csv
import io
from collections.abc import Sequence

from soft_teacher.analysis.fractions import COLUMNS
from soft_teacher.analysis.results import DDOF
from soft_teacher.analysis.suite_results import (
    MAIN_METRIC,
    MODELS,
    GapClosed,
    Number,
    RowResult,
    gap_closed,
    metrics_of,
    paper_gap_closed,
)

NOTHING = "-"
GAP = "gap closed"
CSV_HEADER = (
    *("row", "model", "metric", "mean", "std", "ddof", "n", "wanted", "paper", "paper_std"),
    *("gap_closed", "gap_closed_std", "values", "folders"),
)


def markdown(
    title: str, note: str, setting: str, rows: Sequence[RowResult], gap: GapClosed | None
) -> str:
    """The table as a Markdown document.

    Args:
        title: heading.
        note: what a reader should know; may be empty.
        setting: in a few words, with what base the trainings were made.
        rows: results.
        gap: whose closing is shown; None for no such columns.
    """
    columns = _columns(rows, gap)
    header = ["", "finished", *columns]
    body = [
        [row.name, _count(row), *(numbers.get(row.name, NOTHING) for numbers in columns.values())]
        for row in rows
    ]
    cites = any(row.paper for row in rows)
    lines = [f"# {title}", "", f"{setting}", ""]
    lines += [_line(header), _line(["---"] * len(header)), *map(_line, body), ""]
    lines += [
        "AP is COCO's, in percent, of the final checkpoint, evaluated once at the end. Mean ± "
        f"standard deviation over the finished repetitions (ddof = {DDOF}: the sum of squares is "
        f"divided by n - {DDOF}); no deviation is given of a single one."
        + (" Columns named paper are the paper's numbers on COCO." if cites else ""),
        "",
    ]
    if gap is not None:
        lines += [
            f"Gap closed: (row - {gap.few}) / ({gap.all} - {gap.few}) in {MAIN_METRIC}, in each "
            "repetition, then mean ± standard deviation.",
            "",
        ]
    for row in rows:
        if row.remark:
            lines.append(f"- {row.name}: {'' if row.runs else 'not trained. '}{row.remark}")
    lines += ["", note] if note else []
    return "\n".join(lines).rstrip() + "\n"


def to_csv(rows: Sequence[RowResult], gap: GapClosed | None) -> str:
    """One line for each row and metric, with the values of all repetitions."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for model in MODELS:
        fractions = gap_closed(rows, gap, model) if gap else {}
        for row in rows:
            for metric in metrics_of(rows):
                fraction = fractions.get(row.name) if metric == MAIN_METRIC else None
                values = [run.get(model, {}).get(metric, NOTHING) for run in row.runs.values()]
                ours = [*_parts(row.number(model, metric)), DDOF, len(row.runs), row.num_wanted]
                others = [*_parts(row.paper.get(metric)), *_parts(fraction)]
                lists = [" ".join(map(str, x)) for x in (values, row.folders.values())]
                writer.writerow([row.name, model, metric, *ours, *others, *lists])
    return file.getvalue()


def to_fractions_csv(rows: Sequence[RowResult], test_set: str) -> str:
    """The AP of each training against its labeled fraction, as `read_fractions` reads it.

    Of a training with a teacher it is the teacher's. The method is the row's name without the share
    that ends it.

    Args:
        rows: those without a share of their own are left out.
        test_set: the set that all were evaluated on.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        if row.labeled is None:
            continue
        method = row.name.removesuffix(f", {row.labeled:g} %")
        for label, run in row.runs.items():
            evaluation = run.get("teacher") or run.get("student", {})
            if MAIN_METRIC in evaluation:
                ap = evaluation[MAIN_METRIC]
                writer.writerow([test_set, f"{row.labeled:g}", method, label, ap])
    return file.getvalue()


def _columns(rows: Sequence[RowResult], gap: GapClosed | None) -> dict[str, dict[str, str]]:
    """Heading -> name of the row -> text."""
    columns = {}
    for metric in metrics_of(rows):
        for model in MODELS:
            numbers = {row.name: row.number(model, metric) for row in rows}
            if model == MODELS[0] or any(numbers.values()):
                columns[f"{metric}, {model}"] = {k: format_number(v) for k, v in numbers.items()}
        # The paper's are cited as they are printed there.
        cited = {row.name: str(row.paper[metric]) for row in rows if metric in row.paper}
        if cited:
            columns[f"{metric}, paper"] = cited
    if gap is not None:
        for model in MODELS:
            columns[f"{GAP}, {model}"] = _fractions(gap_closed(rows, gap, model))
        columns[f"{GAP}, paper"] = _fractions(paper_gap_closed(rows, gap))
    return columns


def _fractions(numbers: dict[str, Number]) -> dict[str, str]:
    return {name: format_number(number, digits=2) for name, number in numbers.items()}


def format_number(number: Number | None, digits: int = 1) -> str:
    """Mean and deviation, "-" for None."""
    if number is None:
        return NOTHING
    text = f"{number.mean:.{digits}f}"
    return text if number.std is None else f"{text} ± {number.std:.{digits}f}"


def _count(row: RowResult) -> str:
    return f"{len(row.runs)} of {row.num_wanted}" if row.num_wanted else NOTHING


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(x.replace("|", "\\|") for x in cells) + " |"


def _parts(number: Number | None) -> list[float | str]:
    if number is None:
        return ["", ""]
    return [number.mean, "" if number.std is None else number.std]
