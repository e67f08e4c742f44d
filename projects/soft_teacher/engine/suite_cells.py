"""The trainings of a suite, one for each row and repetition: its cells."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from soft_teacher.engine.data_digest import digest_of_inputs
from soft_teacher.engine.training_run import TrainingRun

FINAL_CHECKPOINT = "model_final.pth"


@dataclass(frozen=True)
class Repetition:
    """One of the trainings of a row.

    Attributes:
        seed: for SEED; None for the base's.
        fold: for DATASETS.FOLD; None for the base's.
    """

    seed: int | None
    fold: int | None

    @property
    def label(self) -> str:
        """Such as "seed_0", "fold_1" or "seed_0-fold_1"."""
        parts = {"seed": self.seed, "fold": self.fold}
        return "-".join(f"{k}_{v}" for k, v in parts.items() if v is not None) or "once"

    @property
    def overrides(self) -> tuple[str, ...]:
        keys = {"SEED": self.seed, "DATASETS.FOLD": self.fold}
        return tuple(str(x) for k, v in keys.items() if v is not None for x in (k, v))


@dataclass(frozen=True)
class Setting:
    """What all cells of a suite have in common.

    Attributes:
        root: the folder of train_net.py.
        base: the config that rows change, named soft_teacher_{recipe}.yaml.
        output: folder; the cells lie in its "cells".
        overrides: KEY VALUE pairs that change the base.
        all_sets: the labeled sets of rows that are labeled "all".
        start_from: config, in the folder of the base, of the training whose checkpoint Soft
            Teacher starts from, in each repetition its own; None for MODEL.WEIGHTS as it is.
        processes: that train together.
    """

    root: Path
    base: Path
    output: Path
    overrides: tuple[str, ...] = ()
    all_sets: tuple[str, ...] = ()
    start_from: str | None = None
    processes: int = 1


@dataclass(frozen=True)
class LabelingStep:
    """How the pseudo labels of a cell are made.

    Attributes:
        command: what makes them.
        file: what is made.
    """

    command: tuple[str, ...]
    file: Path


@dataclass(frozen=True)
class Cell:
    """One training of a suite.

    Cells of several rows or suites that are the same training have the same name and folder.

    Attributes:
        name: of its folder: config, repetition, and a digest of the complete config.
        row: name of the row; "" for what only others start from.
        repetition: of the row.
        setting: common to the suite.
        config_file: its config.
        overrides: KEY VALUE pairs.
        needs: cells that must be finished before.
        labeling: what is done just before training; None for nothing.
    """

    name: str
    row: str
    repetition: Repetition
    setting: Setting = field(repr=False)
    config_file: Path = field(repr=False)
    overrides: tuple[str, ...] = field(repr=False)
    needs: tuple["Cell", ...] = field(repr=False)
    labeling: LabelingStep | None = field(repr=False)

    @property
    def title(self) -> str:
        return f"{self.row or 'start of Soft Teacher'}, {self.repetition.label}"

    @property
    def folder(self) -> Path:
        return self.setting.output / "cells" / self.name

    @property
    def lock_file(self) -> Path:
        """Beside the folder, which is deleted when its training starts over."""
        return self.setting.output / "cells" / f"{self.name}.lock"

    @property
    def differs_by_fold(self) -> bool:
        """Whether its sets, or those of what it needs, are others in another fold."""
        cfg = self._run("").config()
        names = cfg.DATASETS.TRAIN
        if cfg.SOFT_TEACHER.ENABLED:
            names += cfg.DATASETS.UNLABELED
        own = any("{fold}" in name for name in names)
        return own or any(need.differs_by_fold for need in self.needs)

    @property
    def command(self) -> list[str]:
        """The complete command of the training."""
        return self._run("").command()

    def training(self, environment: Mapping[str, str] | None = None) -> TrainingRun:
        """The training, which knows whether it is finished.

        Args:
            environment: see `TrainingRun`.

        Raises:
            ValueError: data are not there.
        """
        cfg = self._run("").config()
        others = [str(self.labeling.file)] if self.labeling else []
        if any(Path(cfg.MODEL.WEIGHTS).parent == need.folder for need in self.needs):
            others.append(cfg.MODEL.WEIGHTS)
        inputs = [digest_of_inputs(cfg, others)]
        inputs += [need.training().fingerprint for need in self.needs]
        return self._run(" ".join(inputs), environment)

    def unchecked_training(self) -> TrainingRun:
        """The same where its data are not there: only `was_finished` can be asked."""
        return self._run("")

    def _run(self, inputs: str, environment: Mapping[str, str] | None = None) -> TrainingRun:
        return TrainingRun(
            self.setting.root / "train_net.py",
            self.config_file,
            self.overrides,
            self.folder,
            inputs,
            self.setting.processes,
            environment,
        )


def repetitions_of(seeds: tuple[int, ...], folds: tuple[int, ...]) -> list[Repetition]:
    """All pairs of a seed and a fold; what is empty is left to the base."""
    return [Repetition(*x) for x in product(seeds or (None,), folds or (None,))]


def with_needs(cells: list[Cell]) -> list[Cell]:
    """Cells and all that they need, each once and after what it needs."""
    ordered: dict[str, Cell] = {}
    for cell in cells:
        for each in (*with_needs(list(cell.needs)), cell):
            ordered.setdefault(each.name, each)
    return list(ordered.values())
