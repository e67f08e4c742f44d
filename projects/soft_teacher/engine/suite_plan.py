"""From the rows of a suite and a base config to trainings."""

import hashlib
import re
import sys
from pathlib import Path

from detectron2.config import CfgNode

from soft_teacher.config import describe_config, load_config
from soft_teacher.data import resolve_dataset_names
from soft_teacher.engine.suite import ALL, Row, Suite, check_config_keys
from soft_teacher.engine.suite_cells import (
    FINAL_CHECKPOINT,
    Cell,
    LabelingStep,
    Repetition,
    Setting,
)
from soft_teacher.engine.training_run import path_from_here, stretched_schedule

BASE_PREFIX = "soft_teacher_"
Overrides = tuple[str, ...]


class Planner:
    """Makes the cells of a suite with a base config; reads configs, but no data."""

    def __init__(self, suite: Suite, setting: Setting):
        """
        Args:
            suite: the table.
            setting: base config and the rest.

        Raises:
            ValueError: the base or a key of the overrides cannot be.
        """
        if not setting.base.is_file():
            raise ValueError(f"There is no config {setting.base}; give another one with --base.")
        known = load_config(str(setting.base))
        check_config_keys(setting.overrides[::2], known, "the command line")
        self._suite = suite
        self._setting = setting
        self._rows = {row.name: row for row in suite.rows}
        # Reading a config with its bases takes long, and many are read several times.
        self._configs: dict[tuple[Path, Overrides], CfgNode] = {}

    def cells_of(self, row: Row, repetitions: list[Repetition]) -> list[Cell]:
        """The cells of a row; one for each seed if its sets are the same in all folds.

        Raises:
            ValueError: the row does not go with the base config; the message names both.
        """
        cells = [self._cell(row, x) for x in repetitions]
        if len({x.fold for x in repetitions}) == 1 or cells[0].differs_by_fold:
            return cells
        if not any("{fold}" in name for name in self._base_sets()):
            raise self._error(
                row,
                "there are several folds, but DATASETS.TRAIN of the base has no set with {fold} in "
                "its name, so all folds are one; give --folds 1, and --seeds for repetitions",
            )
        # Trained on all labels, say: the folds of a seed have one training in common.
        seeds = dict.fromkeys(x.seed for x in repetitions)
        return [self._cell(row, Repetition(seed, None)) for seed in seeds]

    def _base_sets(self) -> tuple[str, ...]:
        setting = self._setting
        return tuple(load_config(str(setting.base), setting.overrides).DATASETS.TRAIN)

    def _cell(self, row: Row, repetition: Repetition) -> Cell:
        config_file = self._config_file(row)
        overrides = self._own_overrides(row, config_file, repetition)
        needs = {x: self._cell(self._rows[x], repetition) for x in row.sources}
        cfg = self._load(row, config_file, overrides)
        # No table shows what others only start from.
        if row.name and len(cfg.DATASETS.TEST) != 1:
            raise self._error(
                row,
                f"DATASETS.TEST names {len(cfg.DATASETS.TEST)} sets, but a table has the results "
                "of one; name one, in the config or behind --",
            )
        if row.after:
            overrides += ("MODEL.WEIGHTS", str(needs[row.after].folder / FINAL_CHECKPOINT))
        elif self._setting.start_from and cfg.SOFT_TEACHER.ENABLED and not row.pseudo_labels:
            start_row = Row("", {}, config=self._setting.start_from, labeled=row.labeled)
            start = needs[""] = self._cell(start_row, repetition)
            overrides += ("MODEL.WEIGHTS", str(start.folder / _start_checkpoint(cfg)))
        name = self._name(row, config_file, repetition, overrides, list(needs.values()))
        labeling = None
        if row.pseudo_labels:
            labeling = self._labeling(row, cfg, needs[row.pseudo_labels.source], name)
            overrides += ("SOFT_TEACHER.PSEUDO_LABELS.FILES", str((str(labeling.file),)))
        return Cell(
            name,
            row.name,
            repetition,
            self._setting,
            config_file,
            overrides,
            tuple(needs.values()),
            labeling,
        )

    def _config_file(self, row: Row) -> Path:
        base = self._setting.base
        if row.config is None:
            return base
        if "{recipe}" in row.config and not base.stem.startswith(BASE_PREFIX):
            raise self._error(
                row,
                f"config is {row.config}, but the name of the base {base} does not begin with "
                f"{BASE_PREFIX}; choose another base",
            )
        path = base.parent / row.config.replace("{recipe}", base.stem.removeprefix(BASE_PREFIX))
        if not path.is_file():
            raise self._error(
                row,
                f"config is {row.config}, but there is no {path}; choose another base, or leave "
                "the row out with --rows",
            )
        return path

    def _own_overrides(self, row: Row, config_file: Path, repetition: Repetition) -> Overrides:
        """All but what depends on other cells: the command line's first, then the row's."""
        overrides = self._setting.overrides
        by_score = _score_overrides(row)
        settled = {*repetition.overrides[::2], *by_score[::2], "OUTPUT_DIR"}
        taken = settled & {*overrides[::2], *row.overrides}
        if taken:
            raise self._error(
                row,
                f"{', '.join(sorted(taken))} cannot be set by KEY VALUE pairs or by a row: give "
                "--seeds for SEED, --folds for DATASETS.FOLD, --output for OUTPUT_DIR, and the "
                "score of pseudo_labels for thresholds",
            )
        if row.labeled is not None:
            overrides += self._labeled_sets(row, self._load(row, config_file, overrides))
        overrides += by_score
        overrides += tuple(str(x) for pair in row.overrides.items() for x in pair)
        if row.stretch != 1:
            cfg = self._load(row, config_file, overrides)
            overrides += stretched_schedule(cfg, row.stretch)
        return overrides + repetition.overrides

    def _labeled_sets(self, row: Row, cfg: CfgNode) -> Overrides:
        """Overrides that give a row its share of labeled images."""
        if row.labeled == ALL:
            if not self._setting.all_sets:
                raise self._error(
                    row, "labeled is all; name the sets that hold all labels with --all-sets"
                )
            return ("DATASETS.TRAIN", str(self._setting.all_sets))
        overrides: Overrides = ()
        for key in ("TRAIN", "UNLABELED") if cfg.SOFT_TEACHER.ENABLED else ("TRAIN",):
            names = cfg.DATASETS[key]
            if not names or any("@" not in name for name in names):
                raise self._error(
                    row,
                    f"labeled is {row.labeled}, but DATASETS.{key} is {names}, where no number "
                    "follows an @ as in coco_semi_{fold}@10; choose another base, or leave the row "
                    "out with --rows",
                )
            shared = tuple(re.sub(r"@[\d.]+", f"@{row.labeled:g}", name) for name in names)
            overrides += (f"DATASETS.{key}", str(shared))
        return overrides

    def _labeling(self, row: Row, cfg: CfgNode, source: Cell, name: str) -> LabelingStep:
        """The command by which the model of a finished cell labels the unlabeled images."""
        _, unlabeled = resolve_dataset_names(cfg)
        if len(unlabeled) != 1:
            raise self._error(
                row, f"pseudo_labels needs one set in DATASETS.UNLABELED, which is {unlabeled}"
            )
        file = source.folder.parent / f"{name}-pseudo_labels.json"
        command = [
            path_from_here(Path(sys.executable)),
            path_from_here(self._setting.root / "tools/pseudo_label.py"),
            *("--config-file", path_from_here(source.config_file)),
            *("--weights", str(source.folder / FINAL_CHECKPOINT)),
            *("--images", unlabeled[0]),
            *("--output", str(file)),
            *("--score-threshold", str(row.pseudo_labels.score)),
            *source.overrides,
        ]
        return LabelingStep(tuple(command), file)

    def _name(
        self,
        row: Row,
        config_file: Path,
        repetition: Repetition,
        overrides: Overrides,
        needs: list[Cell],
    ) -> str:
        cfg = self._load(row, config_file, overrides).clone()
        # It is the name of the config file once more.
        cfg.OUTPUT_DIR = ""
        facts = [describe_config(cfg), str(self._setting.processes), *(x.name for x in needs)]
        facts += [str(row.pseudo_labels.score)] if row.pseudo_labels else []
        digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:8]
        return f"{config_file.stem}-{repetition.label}-{digest}"

    def _load(self, row: Row, config_file: Path, overrides: Overrides) -> CfgNode:
        key = (config_file, overrides)
        if key not in self._configs:
            try:
                self._configs[key] = load_config(str(config_file), overrides)
            except ValueError as error:
                raise self._error(row, f"with {config_file}: {error}") from error
        return self._configs[key]

    def _error(self, row: Row, text: str) -> ValueError:
        return ValueError(f"{self._suite.path}: row {row.name or 'of --start-from'}: {text}.")


def _score_overrides(row: Row) -> Overrides:
    """The score above which written boxes are kept is the one above which they teach."""
    if row.pseudo_labels is None:
        return ()
    keys = ("MIN_SCORE", "CLS_SCORE", "RPN_SCORE")
    pairs = ((f"SOFT_TEACHER.PSEUDO_LABELS.{x}", str(row.pseudo_labels.score)) for x in keys)
    return tuple(x for pair in pairs for x in pair)


def _start_checkpoint(cfg: CfgNode) -> str:
    """The file name in MODEL.WEIGHTS if it is that of a checkpoint, else the final one's."""
    name = Path(cfg.MODEL.WEIGHTS).name
    return name if re.fullmatch(r"model_\d+\.pth", name) else FINAL_CHECKPOINT
