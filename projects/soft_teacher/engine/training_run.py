"""A training as a command of its own: started, resumed, or left alone when it is finished."""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from soft_teacher.analysis.metrics_log import read_entries, read_metrics
from soft_teacher.config import describe_config, load_config
from soft_teacher.engine.atomic_file import open_atomically
from soft_teacher.engine.child_process import last_lines, never, run_command

STATE_FILE = "run.json"
CONSOLE_FILE = "console.txt"


class TrainingFailedError(RuntimeError):
    """The command ended with an error; the message tells where to look."""


class TrainingStoppedError(RuntimeError):
    """The command was stopped, as asked for, and can go on."""


@dataclass(frozen=True)
class Progress:
    """How far a training has come.

    Attributes:
        iteration: iterations that are done.
        max_iter: iterations in all.
        seconds_left: estimate, evaluations apart.
    """

    iteration: int
    max_iter: int
    seconds_left: float


@dataclass(frozen=True)
class TrainingRun:
    """One training by train_net.py in a folder of its own.

    Attributes:
        script: train_net.py.
        config_file: its config.
        overrides: KEY VALUE pairs beyond OUTPUT_DIR.
        output_dir: OUTPUT_DIR; whatever else lies in it is removed when the training starts anew.
        inputs: a digest of the data, and of the run that this one starts from if there is one. A
            run with other inputs is another run.
        num_processes: --num-gpus; on a CPU, so many processes share it.
        environment: variables of the command, which decide nothing but its speed; None for those
            of this process.
    """

    script: Path
    config_file: Path
    overrides: tuple[str, ...]
    output_dir: Path
    inputs: str
    num_processes: int = 1
    environment: Mapping[str, str] | None = None

    @property
    def metrics_file(self) -> Path:
        return self.output_dir / "metrics.json"

    @property
    def finished(self) -> bool:
        """Whether this very training, with its config and data, is complete."""
        return self._is_same() and self._state()["finished"]

    @property
    def was_finished(self) -> bool:
        """Whether the training in the folder is complete, whatever its data were."""
        return (self.output_dir / STATE_FILE).is_file() and self._state()["finished"]

    @property
    def seconds(self) -> float:
        """Wall-clock time of the command, evaluations included, summed over resumptions.

        What was lost in an interruption and done again counts twice.
        """
        return self._state()["seconds"]

    @property
    def evaluation_seconds(self) -> float:
        """The part of `seconds` that went into evaluations, as the training logged it."""
        return sum(read_metrics(self.metrics_file).get("eval_seconds", {}).values())

    @property
    def training_seconds(self) -> float:
        """The rest of `seconds`: start of the program, training, checkpoints."""
        return self.seconds - self.evaluation_seconds

    def stretched_to(self, seconds: float) -> tuple[str, ...]:
        """Overrides for a like training that takes so many seconds, evaluations apart."""
        return stretched_schedule(self.config(), seconds / self.training_seconds)

    def config(self) -> CfgNode:
        """The complete config, as train_net.py reads it."""
        return load_config(str(self.config_file), self.overrides)

    def command(self, resume: bool = False) -> list[str]:
        """What a person would type."""
        return [
            path_from_here(Path(sys.executable)),
            path_from_here(self.script),
            "--config-file",
            path_from_here(self.config_file),
            *(["--num-gpus", str(self.num_processes)] if self.num_processes > 1 else []),
            *(["--resume"] if resume else []),
            *self.overrides,
            "OUTPUT_DIR",
            str(self.output_dir),
        ]

    @property
    def can_resume(self) -> bool:
        """Whether the folder holds a checkpoint of this very training."""
        return self._is_same() and (self.output_dir / "last_checkpoint").is_file()

    def complete(
        self, on_progress: Callable[[Progress], None], stopped: Callable[[], bool] = never
    ) -> None:
        """Train to the end, from the last checkpoint of this training if there is one.

        Args:
            on_progress: called every second or so once the first iterations are logged.
            stopped: whether to stop; asked every second or so.

        Raises:
            TrainingFailedError: the command failed. Called again, it goes on from there.
            TrainingStoppedError: `stopped` said so. Called again, it goes on from there.
            ValueError: `output_dir` holds files of something else.
        """
        resume = self.can_resume
        if not resume:
            self.remove()
            self.output_dir.mkdir(parents=True)
            self._write_state(seconds=0.0, finished=False)
        before, start, code = self.seconds, time.perf_counter(), None
        try:
            code = self._execute(self.command(resume), on_progress, stopped)
        finally:
            self._write_state(before + time.perf_counter() - start, finished=code == 0)
        if code != 0 and stopped():
            raise TrainingStoppedError(f"The training in {self.output_dir} was stopped.")
        if code != 0:
            raise TrainingFailedError(self._explain(code))

    def remove(self) -> None:
        """Delete the folder.

        Raises:
            ValueError: it was not made by this class.
        """
        if not self.output_dir.exists():
            return
        if any(self.output_dir.iterdir()) and not (self.output_dir / STATE_FILE).is_file():
            raise ValueError(
                f"{self.output_dir} holds files that are not of such a training; move them away or "
                "choose another folder."
            )
        shutil.rmtree(self.output_dir)

    def _execute(
        self,
        command: list[str],
        on_progress: Callable[[Progress], None],
        stopped: Callable[[], bool],
    ) -> int:
        max_iter = self.config().SOLVER.MAX_ITER
        return run_command(
            command,
            self.output_dir / CONSOLE_FILE,
            lambda: self._report(on_progress, max_iter),
            stopped,
            self.environment,
        )

    def _report(self, on_progress: Callable[[Progress], None], max_iter: int) -> None:
        for entry in reversed(read_entries(self.metrics_file)):
            if "eta_seconds" in entry:
                on_progress(Progress(entry["iteration"] + 1, max_iter, entry["eta_seconds"]))
                return

    def _explain(self, code: int) -> str:
        console = self.output_dir / CONSOLE_FILE
        return "\n".join(
            [
                *last_lines(console),
                f"The training in {self.output_dir} failed with exit code {code}: see the lines "
                f"above and {console}. When the cause is mended, the same command goes on from "
                "the last checkpoint.",
            ]
        )

    @property
    def fingerprint(self) -> str:
        """A digest of all that decides the outcome: config, data, number of processes."""
        facts = (describe_config(self.config()), self.inputs, str(self.num_processes))
        return hashlib.sha256("".join(facts).encode()).hexdigest()

    def _state(self) -> dict:
        return json.loads((self.output_dir / STATE_FILE).read_text())

    def _is_same(self) -> bool:
        return (self.output_dir / STATE_FILE).is_file() and (
            self._state()["fingerprint"] == self.fingerprint
        )

    def _write_state(self, seconds: float, finished: bool) -> None:
        state = {"fingerprint": self.fingerprint, "seconds": seconds, "finished": finished}
        # Others may be reading it.
        with open_atomically(str(self.output_dir / STATE_FILE), "w") as f:
            f.write(json.dumps(state))


def stretched_schedule(cfg: CfgNode, factor: float) -> tuple[str, ...]:
    """Overrides for a training that is so many times as long.

    The schedule keeps its shape, but for the warmup: for how long the first steps must be small
    does not depend on how many there are in all. 0, which turns a part of it off, stays 0.
    """

    def scaled(iterations: int) -> int:
        return max(1, round(factor * iterations)) if iterations else 0

    soft_teacher = cfg.SOFT_TEACHER
    return (
        *("SOLVER.MAX_ITER", str(scaled(cfg.SOLVER.MAX_ITER))),
        *("SOLVER.STEPS", str(tuple(scaled(x) for x in cfg.SOLVER.STEPS))),
        *("TEST.EVAL_PERIOD", str(scaled(cfg.TEST.EVAL_PERIOD))),
        *("SOFT_TEACHER.BURN_IN_ITERS", str(scaled(soft_teacher.BURN_IN_ITERS))),
        *("SOFT_TEACHER.UNLABELED_DECAY_ITERS", str(scaled(soft_teacher.UNLABELED_DECAY_ITERS))),
    )


def path_from_here(path: Path) -> str:
    """A path below the working directory as seen from there, any other in full."""
    # abspath, unlike resolve, keeps a virtual environment's link to its Python.
    absolute = Path(os.path.abspath(path))
    here = Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)
