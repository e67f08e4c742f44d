"""Runs the cells of a suite: several at a time, each by one runner only, none twice."""

import contextlib
import fcntl
import shlex
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from soft_teacher.engine.child_process import last_lines, run_command
from soft_teacher.engine.progress_line import complete_visibly
from soft_teacher.engine.suite_cells import Cell, LabelingStep
from soft_teacher.engine.training_run import TrainingFailedError, TrainingStoppedError

POLL_SECONDS = 0.5


class SuiteRunner:
    """Trains cells, those that are needed by others first.

    A cell is locked while it is trained, so that several runners, on one machine or on several that
    share a file system, work on one suite together: what one has locked, the others leave alone
    until nothing else is to be done, and then wait for it. A lock ends with its process.
    """

    def __init__(
        self,
        cells: list[Cell],
        environments: list[Mapping[str, str]],
        stopped: Callable[[], bool],
    ):
        """
        Args:
            cells: what to train, each after those that it needs.
            environments: of the commands, one for each cell that is trained at the same time.
            stopped: whether to stop; asked every second or so.
        """
        self._pending = list(cells)
        self._free = list(environments)
        self._with_progress = len(environments) == 1
        self._stopped = stopped
        self._running: dict[Future, tuple[Cell, Mapping[str, str]]] = {}
        self._finished: set[str] = set()
        self._waited_for: set[str] = set()
        self._failures: dict[str, tuple[str, str]] = {}

    def run(self) -> list[tuple[str, str]]:
        """Train until all is done, has failed, or is to stop.

        Returns:
            Title and reason of each cell that failed.
        """
        with ThreadPoolExecutor(len(self._free)) as pool:
            while self._pending or self._running:
                if self._stopped():
                    self._pending = []
                self._start_cells(pool)
                self._wait()
        return list(self._failures.values())

    def _start_cells(self, pool: ThreadPoolExecutor) -> None:
        for cell in list(self._pending):
            broken = [need.title for need in cell.needs if need.name in self._failures]
            if broken:
                self._pending.remove(cell)
                reason = f"It starts from {broken[0]}, which failed."
                self._failures[cell.name] = (cell.title, reason)
            elif self._free and all(need.name in self._finished for need in cell.needs):
                self._try_to_start(pool, cell)

    def _try_to_start(self, pool: ThreadPoolExecutor, cell: Cell) -> None:
        lock = try_lock(cell.lock_file)
        if lock is None:
            if cell.name not in self._waited_for:
                print(f"Another runner is at it: {cell.title}", flush=True)
                self._waited_for.add(cell.name)
            return
        self._pending.remove(cell)
        environment = self._free.pop(0)
        future = pool.submit(self._train, cell, environment, lock)
        self._running[future] = (cell, environment)

    def _train(
        self, cell: Cell, environment: Mapping[str, str], lock: contextlib.ExitStack
    ) -> None:
        with lock:
            training = cell.training(environment)
            if not training.finished:
                print(f"{cell.title}:", flush=True)
                if cell.labeling is not None and not training.can_resume:
                    make_pseudo_labels(cell.labeling, environment, self._stopped)
            complete_visibly(training, self._stopped, self._with_progress)

    def _wait(self) -> None:
        if not self._running:
            # All that is left is with other runners, or there is nothing left.
            time.sleep(POLL_SECONDS if self._pending else 0)
            return
        done, _ = wait(self._running, POLL_SECONDS, FIRST_COMPLETED)
        for future in done:
            cell, environment = self._running.pop(future)
            self._free.append(environment)
            try:
                future.result()
            except TrainingStoppedError as error:
                print(error, flush=True)
            except (TrainingFailedError, ValueError, OSError) as error:
                self._failures[cell.name] = (cell.title, str(error))
                print(f"Failed: {cell.title}", flush=True)
            else:
                self._finished.add(cell.name)


def try_lock(path: Path) -> contextlib.ExitStack | None:
    """Lock a file for as long as the result is open; None if another process or thread has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(path.open("a"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        return stack.pop_all()


def make_pseudo_labels(
    step: LabelingStep, environment: Mapping[str, str], stopped: Callable[[], bool]
) -> None:
    """Run the command that labels the unlabeled images.

    Raises:
        TrainingFailedError: it failed.
        TrainingStoppedError: it was stopped.
    """
    print(f"$ {shlex.join(step.command)}", flush=True)
    console = step.file.with_suffix(".txt")
    code = run_command(step.command, console, lambda: None, stopped, environment)
    if code != 0 and stopped():
        raise TrainingStoppedError(f"The pseudo-labeling for {step.file} was stopped.")
    if code != 0:
        what = f"The pseudo-labeling failed with exit code {code}, see {console}."
        raise TrainingFailedError("\n".join([*last_lines(console), what]))


def job_environments(
    jobs: int, processes: int, num_gpus: int, num_cores: int, inherited: Mapping[str, str]
) -> list[dict[str, str]]:
    """Environments for cells that are trained at the same time, which share a machine.

    Args:
        jobs: number of cells.
        processes: of each.
        num_gpus: of the machine that this process sees; each process gets one.
        num_cores: of the machine; without a GPU the threads of all jobs fill them.
        inherited: environment variables; a number of threads that is set there is kept.

    Raises:
        ValueError: there are fewer GPUs than processes.
    """
    if num_gpus and jobs * processes > num_gpus:
        raise ValueError(
            f"--jobs {jobs} with --processes {processes} needs {jobs * processes} GPUs, but there "
            f"are {num_gpus}; choose fewer."
        )
    visible = inherited.get("CUDA_VISIBLE_DEVICES", "")
    devices = visible.split(",") if visible else [str(x) for x in range(num_gpus)]
    environments = []
    for job in range(jobs):
        environment = dict(inherited)
        if num_gpus:
            own = devices[job * processes : (job + 1) * processes]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        elif jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, num_cores // (jobs * processes))))
        environments.append(environment)
    return environments
