"""A table of trainings as a YAML file: its rows, what they change, and the paper's numbers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

from soft_teacher.analysis.suite_results import METRICS, GapClosed, Number
from soft_teacher.config import add_soft_teacher_config

ALL = "all"
SUITE_KEYS = {"title", "table", "note", "repetitions", "rows", "gap_closed"}
ROW_KEYS = {
    "name",
    "config",
    "labeled",
    "stretch",
    "overrides",
    "after",
    "pseudo_labels",
    "paper",
    "not_run",
}


@dataclass(frozen=True)
class PseudoLabels:
    """What another row's final model finds in the unlabeled images teaches in place of a teacher.

    Attributes:
        source: name of that row.
        score: foreground score above which a detection becomes a label.
    """

    source: str
    score: float


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        name: in the table, unique.
        paper: metric -> the paper's number.
        config: name of a config file beside the base, "{recipe}" being what follows
            "soft_teacher_" in the base's name; None for the base itself.
        labeled: share of labeled images in percent, which takes the place of the number behind
            "@" in the names of the base's sets; "all" for the sets of --all-sets; None for the
            base's own sets.
        stretch: factor on the length of training.
        overrides: config key -> value.
        after: name of the row whose final checkpoint of the same repetition training starts from.
        pseudo_labels: what is labeled beforehand.
        not_run: why this row only cites the paper; None if it is trained.
    """

    name: str
    paper: Mapping[str, Number]
    config: str | None = None
    labeled: float | str | None = None
    stretch: float = 1.0
    overrides: Mapping[str, Any] = field(default_factory=dict)
    after: str | None = None
    pseudo_labels: PseudoLabels | None = None
    not_run: str | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the rows that must be trained before."""
        labeler = self.pseudo_labels.source if self.pseudo_labels else None
        return tuple(x for x in (self.after, labeler) if x is not None)


@dataclass(frozen=True)
class Suite:
    """A table.

    Attributes:
        path: its file.
        title: heading.
        table: number in the paper; None for one that is not there.
        note: what a reader should know.
        seeds: for SEED; empty for the base's.
        folds: for DATASETS.FOLD; empty for the base's.
        rows: in the order of the table, each after those that it starts from.
        gap_closed: names of the rows that are the ends of the gap.
    """

    path: Path
    title: str
    table: int | None
    note: str
    seeds: tuple[int, ...]
    folds: tuple[int, ...]
    rows: tuple[Row, ...]
    gap_closed: GapClosed | None


def read_suite(path: Path) -> Suite:
    """Read a suite and check it.

    Values of config keys are checked later, with the base config; the keys are checked here.

    Raises:
        ValueError: it is no YAML, or a key or a name in it is unknown; the message names both
            file and key.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"There is no suite {path}; look into configs/suites.") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no plain YAML: {error}.") from error
    _check_mapping(content, SUITE_KEYS, {"title", "rows"}, str(path))
    _check_texts(content, ("title", "note"), str(path))
    if not isinstance(content["rows"], list):
        raise ValueError(f"{path}: rows must be a list.")
    repetitions = content.get("repetitions", {})
    _check_mapping(repetitions, {"seeds", "folds"}, set(), f"{path}: repetitions")
    known = get_cfg()
    add_soft_teacher_config(known)
    rows = []
    for number, row in enumerate(content["rows"], start=1):
        rows.append(_read_row(row, known, f"{path}: row {number}", [x.name for x in rows]))
    return Suite(
        path,
        content["title"],
        content.get("table"),
        content.get("note", "").strip(),
        _whole_numbers(repetitions.get("seeds", []), f"{path}: repetitions: seeds"),
        _whole_numbers(repetitions.get("folds", []), f"{path}: repetitions: folds"),
        tuple(rows),
        _read_gap(content.get("gap_closed"), rows, f"{path}: gap_closed"),
    )


def check_config_keys(keys: Iterable[str], known: CfgNode, where: str) -> None:
    """Raise a ValueError if a config has no such key.

    Args:
        keys: such as "SOLVER.MAX_ITER".
        known: a config with all keys.
        where: file and place, for the message.
    """
    for key in keys:
        node: Any = known
        for part in str(key).split("."):
            if not isinstance(node, CfgNode) or part not in node:
                raise ValueError(f"{where}: there is no config key {key}; look at its spelling.")
            node = node[part]
        if isinstance(node, CfgNode):
            raise ValueError(f"{where}: {key} is a group of config keys; name one of them.")


def _read_row(row: Any, known: CfgNode, where: str, earlier: list[str]) -> Row:
    _check_mapping(row, ROW_KEYS, {"name", "paper"}, where)
    _check_texts(row, ("name", "config", "after", "not_run"), where)
    where = f"{where} ({row['name']})"
    if row["name"] in earlier:
        raise ValueError(f"{where}: another row has this name; choose a name of its own.")
    overrides = row.get("overrides", {})
    _check_mapping(overrides, None, set(), f"{where}: overrides")
    check_config_keys(overrides, known, f"{where}: overrides")
    result = Row(
        name=row["name"],
        paper=_read_paper(row["paper"], f"{where}: paper"),
        config=row.get("config"),
        labeled=_read_labeled(row.get("labeled"), where),
        stretch=_positive(row.get("stretch", 1.0), f"{where}: stretch"),
        overrides=overrides,
        after=row.get("after"),
        pseudo_labels=_read_pseudo_labels(row.get("pseudo_labels"), where),
        not_run=row.get("not_run"),
    )
    for source in result.sources:
        if source not in earlier:
            raise ValueError(
                f"{where}: it starts from {source!r}, which no row above is named; those are "
                f"{', '.join(earlier) or 'none'}."
            )
    return result


def _read_paper(paper: Any, where: str) -> dict[str, Number]:
    _check_mapping(paper, set(METRICS), set(), where)
    numbers = {}
    for metric, value in paper.items():
        parts = value if isinstance(value, list) else [value, None]
        if len(parts) != 2 or not isinstance(parts[0], int | float):
            raise ValueError(
                f"{where}: {metric} is {value!r}; write a number, or [mean, standard deviation]."
            )
        numbers[metric] = Number(*parts)
    return numbers


def _read_labeled(value: Any, where: str) -> float | str | None:
    if value in (None, ALL):
        return value
    return _positive(value, f"{where}: labeled", f"a share in percent, or {ALL}")


def _read_pseudo_labels(value: Any, where: str) -> PseudoLabels | None:
    if value is None:
        return None
    keys = {"from", "score"}
    _check_mapping(value, keys, keys, f"{where}: pseudo_labels")
    _check_texts(value, ("from",), f"{where}: pseudo_labels")
    score = _positive(value["score"], f"{where}: score", "a number between 0 and 1")
    if score >= 1:
        raise ValueError(f"{where}: score is {score!r}; write a number between 0 and 1.")
    return PseudoLabels(value["from"], score)


def _read_gap(value: Any, rows: list[Row], where: str) -> GapClosed | None:
    if value is None:
        return None
    keys = {"few", "all"}
    _check_mapping(value, keys, keys, where)
    for key in sorted(keys):
        if value[key] not in [row.name for row in rows]:
            raise ValueError(f"{where}: {key} is {value[key]!r}, which no row is named.")
    return GapClosed(value["few"], value["all"])


def _whole_numbers(values: Any, where: str) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(x) is int for x in values):
        raise ValueError(f"{where} is {values!r}; write a list of whole numbers.")
    if len(set(values)) < len(values):
        raise ValueError(f"{where} is {values!r}; write each number once.")
    return tuple(values)


def _positive(value: Any, where: str, what: str = "a number above 0") -> float:
    if type(value) not in (int, float) or value <= 0:
        raise ValueError(f"{where} is {value!r}; write {what}.")
    return value


def _check_texts(mapping: dict[str, Any], keys: tuple[str, ...], where: str) -> None:
    """Raise a ValueError if one of the keys is there and no text."""
    for key in keys:
        if not isinstance(mapping.get(key, ""), str):
            raise ValueError(f"{where}: {key} is {mapping[key]!r}; write a text, in quotes.")


def _check_mapping(value: Any, known: set[str] | None, needed: set[str], where: str) -> None:
    """Raise a ValueError unless this is a mapping of the known keys, with the needed ones."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a mapping of KEY: VALUE.")
    unknown = sorted(str(x) for x in value if known is not None and x not in known)
    if unknown:
        raise ValueError(
            f"{where}: unknown key {', '.join(unknown)}; known are {', '.join(sorted(known))}."
        )
    missing = sorted(needed - value.keys())
    if missing:
        raise ValueError(f"{where}: the key {', '.join(missing)} is missing.")
