"""The progress of a training on the terminal."""

import shutil
import sys
import time

from soft_teacher.analysis.results import format_seconds
from soft_teacher.engine.training_run import Progress

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
