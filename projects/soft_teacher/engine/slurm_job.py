"""Trainings inside jobs of submitit: started, stopped by SLURM's signals, queued again."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from detectron2.engine import default_argument_parser
from submitit import JobEnvironment
from submitit.helpers import Checkpointable

from soft_teacher.engine.launching import launch_training
from soft_teacher.engine.process_place import port_of_job
from soft_teacher.engine.stop_signal import exit_status


class TrainingJob(Checkpointable):
    """What each task of a job calls: train_net.py's `main`, as one process of the training.

    During training a signal is noted by the training itself, which finishes the iteration on all
    processes and saves a checkpoint. Then the first process hands SIGUSR2 on to submitit, whose
    handler puts the job back into the queue. Outside of training (while the program starts, in the
    last evaluation) submitit's handler is in place and does so at once.

    Attributes:
        script: train_net.py.
        arguments: its arguments. With --resume a job that starts again goes on.
    """

    def __init__(self, script: Path, arguments: tuple[str, ...]):
        self.script = script
        self.arguments = arguments

    def __call__(self) -> None:
        """Train to the end.

        Raises:
            SystemExit: the training was stopped; SLURM runs the job again if it should.
        """
        job = JobEnvironment()
        _remove_unfinished_pickle(job)
        if job.cluster == "local" and job.num_tasks > 1:
            _announce_local_place(job)
        args = default_argument_parser().parse_args(list(self.arguments))
        try:
            launch_training(load_main(self.script), args)
        except SystemExit as end:
            end_stopped_task(job, end.code)
            raise


class SuiteCellJob(Checkpointable):
    """What the only task of a job calls: the `main` of tools/run_suite.py, for one training.

    It stops at the same signals as a training does, and lets the training, a process of its own,
    save a checkpoint; then the job goes back into the queue as that of a `TrainingJob` does.

    Attributes:
        script: run_suite.py.
        arguments: its arguments.
    """

    def __init__(self, script: Path, arguments: tuple[str, ...]):
        self.script = script
        self.arguments = arguments

    def __call__(self) -> None:
        """Train to the end.

        Raises:
            SystemExit: the training was stopped, or failed; what failed is not queued again.
        """
        job = JobEnvironment()
        _remove_unfinished_pickle(job)
        status = load_main(self.script)(list(self.arguments))
        end_stopped_task(job, status)
        if status != 0:
            sys.exit(status)


def load_module(script: Path) -> ModuleType:
    """A Python file as a module, which can be imported by its name afterwards."""
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[script.stem] = module
    spec.loader.exec_module(module)
    return module


def load_main(script: Path) -> Callable[..., object]:
    """The function `main` of a Python file."""
    return load_module(script).main


def end_stopped_task(job: JobEnvironment, status: object) -> None:
    """End a task whose training was stopped by a signal; queue the job again if that is wanted.

    SIGUSR2 asks for that. SIGTERM is what SLURM sends for a preemption where it is not set up to
    send the former, and for scancel, too: the controller knows which of them it was.

    Args:
        job: submitit's view of this job.
        status: with which the training ended. Nothing happens if that was no signal's.

    Raises:
        SystemExit: always after a signal. Only the first process ends with another status than 0:
            srun kills the others when one fails, and the first has still to ask for the queue.
        submitit.core.utils.UncompletedJobError: the job has been timed out too many times.
    """
    wants_queue = status == exit_status(signal.SIGUSR2)
    if not wants_queue and status != exit_status(signal.SIGTERM):
        return
    if job.global_rank != 0:
        sys.exit(0)
    if wants_queue or (job.cluster == "slurm" and was_preempted(job.raw_job_id)):
        # To this process alone, whose handler is submitit's again. It does not return.
        signal.raise_signal(signal.SIGUSR2)


def was_preempted(job_id: str) -> bool:
    """Whether SLURM is ending a job in favor of another."""
    command = ["scontrol", "--oneliner", "show", "job", job_id]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.search(r"\bPreemptTime=\d", shown) is not None


def _remove_unfinished_pickle(job: JobEnvironment) -> None:
    """Left by a process that was killed while it wrote, it would keep submitit from writing."""
    if job.global_rank == 0:
        pickle = job.paths.submitted_pickle
        pickle.with_suffix(f"{pickle.suffix}.save_tmp").unlink(missing_ok=True)


def _announce_local_place(job: JobEnvironment) -> None:
    """Tell this process about the others, as torchrun would: submitit's tasks on one machine."""
    os.environ.update(
        RANK=str(job.global_rank),
        WORLD_SIZE=str(job.num_tasks),
        LOCAL_RANK=str(job.local_rank),
        LOCAL_WORLD_SIZE=str(job.num_tasks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port_of_job(int(job.job_id))),
    )
