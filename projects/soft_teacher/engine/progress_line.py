"""The progress of a training on the terminal."""

import shlex
import shutil
import sys
import time
from collections.abc import Callable

from soft_teacher.analysis.results import format_seconds
from soft_teacher.engine.child_process import never
from soft_teacher.engine.training_run import Progress, TrainingRun

PERIOD_IN_FILE = 60.0


class ProgressLine:
    """One line that is overwritten on a terminal, a line each minute in a file."""

    def __init__(self) -> None:
        self._on_terminal = sys.stdout.isatty()
        self._next = 0.0

    def show(self, progress: Progress) -> None:
        """Write how far the training is."""
        now = time.monotonic()
        if not self._on_terminal and now < self._next:
            return
        self._next = now + PERIOD_IN_FILE
        text = (
            f"  iteration {progress.iteration} of {progress.max_iter}, "
            f"about {format_seconds(progress.seconds_left)} left"
        )
        if self._on_terminal:
            print("\r" + text.ljust(shutil.get_terminal_size().columns - 1), end="", flush=True)
        else:
            print(text, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self._on_terminal and self._next > 0:
            print()


def complete_visibly(
    training: TrainingRun, stopped: Callable[[], bool] = never, with_progress: bool = True
) -> None:
    """Train to the end unless that is done, with the command and the progress on the terminal.

    Args:
        training: what to complete, see `TrainingRun.complete`, also for what it raises.
        stopped: whether to stop; asked every second or so.
        with_progress: False leaves the line of progress out, for several at a time.
    """
    folder = training.output_dir
    if training.finished:
        print(f"Finished earlier: {folder}", flush=True)
        return
    if folder.exists() and not training.can_resume:
        print(f"Starting over: {folder} is of another config or has no checkpoint")
    print(f"$ {shlex.join(training.command(training.can_resume))}", flush=True)
    line = ProgressLine()
    try:
        training.complete(line.show if with_progress else lambda progress: None, stopped)
    finally:
        if with_progress:
            line.end()
    spent = f"done in {format_seconds(training.seconds)}, evaluations included"
    print(f"  {spent}" if with_progress else f"{folder}: {spent}", flush=True)
