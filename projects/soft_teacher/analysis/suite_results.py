"""The numbers of a table of trainings: means, deviations, and how much of a gap is closed."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from soft_teacher.analysis.metrics_log import Metrics
from soft_teacher.analysis.results import DDOF

# Name in tables -> name in metrics.json, behind "student/" or "teacher/".
METRICS = {
    "AP": "bbox/AP",
    "AP50": "bbox/AP50",
    "AP75": "bbox/AP75",
    "mask AP": "segm/AP",
    # With TEST.AUG.ENABLED, of the same final checkpoint.
    "multi-scale AP": "bbox_TTA/AP",
    "multi-scale mask AP": "segm_TTA/AP",
}
MODELS = ("student", "teacher")
MAIN_METRIC = "AP"

Evaluation = dict[str, dict[str, float]]
"""Model -> metric -> percent. Absent is what was not evaluated, or had no detection at all."""


@dataclass(frozen=True)
class Number:
    """A mean and its deviation.

    Attributes:
        mean: or the only value.
        std: standard deviation; None if it is unknown.
    """

    mean: float
    std: float | None = None

    def __str__(self) -> str:
        return str(self.mean) if self.std is None else f"{self.mean} ± {self.std}"


@dataclass(frozen=True)
class GapClosed:
    """Names of two supervised rows: what they leave between them is to be closed.

    Attributes:
        few: trained on few labels.
        all: trained on all labels.
    """

    few: str
    all: str


@dataclass(frozen=True)
class RowResult:
    """What the trainings of a row have come to.

    Attributes:
        name: of the row.
        paper: metric -> the paper's number.
        runs: repetition, such as "seed_0-fold_1", or "seed_0" for one that all folds have in common
            -> the last evaluation, of finished trainings alone.
        num_wanted: repetitions in all; 0 for a row that is not trained.
        remark: why it is not trained, or what is not known of what was; "" for neither.
        folders: repetition -> where its training lies.
        labeled: share of labeled images in percent, if the row has one of its own.
    """

    name: str
    paper: Mapping[str, Number]
    runs: Mapping[str, Evaluation]
    num_wanted: int
    remark: str
    folders: Mapping[str, str]
    labeled: float | None = None

    def number(self, model: str, metric: str) -> Number | None:
        """Mean and deviation over the repetitions; None unless all that are finished have one."""
        values = [run.get(model, {}).get(metric) for run in self.runs.values()]
        return None if None in values else mean_and_std(values)


def mean_and_std(values: Sequence[float]) -> Number | None:
    """Mean and standard deviation of a sample; None of nothing, a deviation of one is None."""
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > DDOF else None
    return Number(statistics.fmean(values), std)


def last_evaluation(metrics: Metrics) -> Evaluation:
    """The last evaluation of each model, in a finished training that of the final checkpoint."""
    evaluation: Evaluation = {}
    for model in MODELS:
        for metric, name in METRICS.items():
            points = metrics.get(f"{model}/{name}")
            value = [*points.values()][-1] if points else None
            # A NaN, which is not equal to itself, is no detection to evaluate.
            if value is not None and value == value:
                evaluation.setdefault(model, {})[metric] = value
    return evaluation


def gap_closed(
    rows: Sequence[RowResult], gap: GapClosed, model: str, metric: str = MAIN_METRIC
) -> dict[str, Number]:
    """The fraction of the gap that each row closes, 1 being all of it.

    (row - supervised on few) / (supervised on all - supervised on few), in each repetition that
    all three have finished, then mean and deviation over these. Where the folds of a seed have one
    supervised training on all labels in common, that is taken for each of them.

    Args:
        rows: of one table.
        gap: the two supervised rows, of which the student is taken: they have no other model.
        model: of the other rows, "student" or "teacher".
        metric: which.

    Returns:
        Name of the row -> fraction; rows without any are absent.
    """
    by_name = {row.name: row for row in rows}
    few, common = (_values(by_name[x], "student", metric) for x in (gap.few, gap.all))
    everything = {label: common.get(label, common.get(_without_fold(label))) for label in few}
    fractions = {}
    for row in rows:
        if row.name in (gap.few, gap.all):
            continue
        values = [
            (value - few[label]) / (everything[label] - few[label])
            for label, value in _values(row, model, metric).items()
            if everything.get(label) not in (None, few.get(label))
        ]
        number = mean_and_std(values)
        if number is not None:
            fractions[row.name] = number
    return fractions


def paper_gap_closed(rows: Sequence[RowResult], gap: GapClosed) -> dict[str, Number]:
    """The same fraction of the paper's means."""
    paper = {row.name: row.paper[MAIN_METRIC].mean for row in rows if MAIN_METRIC in row.paper}
    few, everything = paper.get(gap.few), paper.get(gap.all)
    if few is None or everything is None or few == everything:
        return {}
    return {
        name: Number((value - few) / (everything - few))
        for name, value in paper.items()
        if name not in (gap.few, gap.all)
    }


def metrics_of(rows: Sequence[RowResult]) -> list[str]:
    """The metrics of which the paper or the trainings have a number, in the order of `METRICS`."""
    found = {metric for row in rows for metric in row.paper}
    for row in rows:
        found |= {metric for run in row.runs.values() for x in run.values() for metric in x}
    return [metric for metric in METRICS if metric in found]


def to_json(rows: Sequence[RowResult], gap: GapClosed | None) -> list[dict[str, Any]]:
    """All numbers of all rows, for json.dump."""
    fractions = {model: gap_closed(rows, gap, model) if gap else {} for model in MODELS}
    return [
        {
            "name": row.name,
            "remark": row.remark,
            "repetitions": {"finished": len(row.runs), "wanted": row.num_wanted},
            "paper": {metric: _plain(number) for metric, number in row.paper.items()},
            **{
                model: {metric: _plain(row.number(model, metric)) for metric in metrics_of(rows)}
                for model in MODELS
            },
            "gap_closed": {model: _plain(fractions[model].get(row.name)) for model in MODELS},
            "runs": [
                {"repetition": label, "folder": row.folders[label], **evaluation}
                for label, evaluation in row.runs.items()
            ],
        }
        for row in rows
    ]


def _values(row: RowResult, model: str, metric: str) -> dict[str, float]:
    return {
        label: run[model][metric] for label, run in row.runs.items() if metric in run.get(model, {})
    }


def _without_fold(label: str) -> str:
    """What a repetition is called that is of all folds: "seed_1-fold_2" -> "seed_1"."""
    return "-".join(x for x in label.split("-") if not x.startswith("fold_")) or "once"


def _plain(number: Number | None) -> dict[str, float | None] | None:
    return None if number is None else {"mean": number.mean, "std": number.std}
