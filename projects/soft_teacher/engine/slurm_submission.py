"""Jobs of submitit: what they ask of SLURM, and how they are handed in."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from submitit import Job, LocalExecutor, SlurmExecutor
from submitit.helpers import Checkpointable

from soft_teacher.engine.process_place import TORCHRUN_NAMES

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Resources:
    """What a job asks for.

    Attributes:
        nodes: machines.
        gpus_per_node: GPUs on each; one process for each of them. 0: train on the CPU.
        tasks_per_node: processes on each machine that SLURM starts; None for one a GPU, or one on
            the CPU.
        minutes: time limit of one run of the job.
        signal_delay: seconds before the limit at which the training is asked to stop. An iteration
            and a checkpoint must fit in.
        max_timeouts: how often a job is queued again after its limit. Preemptions do not count.
        cpus_per_task: CPUs of a process; None for SLURM's default.
        name: of the job.
        extra: options of sbatch without "--", such as partition and account; None is left out.
    """

    nodes: int
    gpus_per_node: int
    tasks_per_node: int | None
    minutes: int
    signal_delay: int
    max_timeouts: int
    cpus_per_task: int | None
    name: str
    extra: dict[str, str | None]

    def __post_init__(self) -> None:
        """Refuse what can be known to be wrong without SLURM."""
        at_least_one = {
            "nodes": self.nodes,
            "time": self.minutes,
            "tasks-per-node": self.num_tasks_per_node,
            "cpus-per-task": self.cpus_per_task or 1,
        }
        at_least_none = {"gpus-per-node": self.gpus_per_node, "max-timeouts": self.max_timeouts}
        for least, numbers in ((0, at_least_none), (1, at_least_one)):
            for option, number in numbers.items():
                if number < least:
                    raise ValueError(f"--{option} is {number}; it must be at least {least}")
        if not 0 < self.signal_delay < 60 * self.minutes:
            raise ValueError(
                f"--signal-delay is {self.signal_delay} seconds; it must be above 0 and less than "
                f"the time limit, {60 * self.minutes} seconds"
            )

    @property
    def num_tasks_per_node(self) -> int:
        if self.tasks_per_node is None:
            return self.gpus_per_node or 1
        return self.tasks_per_node


def slurm_executor(resources: Resources, folder: Path) -> SlurmExecutor:
    """What submits jobs; pickles, batch scripts and logs lie in `folder`, which all nodes see."""
    # A signal that comes before submitit can catch it must not end the task.
    python = f'sh -c \'trap "" USR2; exec "$0" "$@"\' {shlex.quote(sys.executable)}'
    executor = _DryExecutor(folder, max_num_timeout=resources.max_timeouts, python=python)
    # When one process fails the others would wait for it.
    srun_args = ["--kill-on-bad-exit=1"]
    optional = {k: v for k, v in resources.extra.items() if v is not None}
    if resources.gpus_per_node:
        optional["gpus_per_node"] = resources.gpus_per_node
    if resources.cpus_per_task is not None:
        optional["cpus_per_task"] = resources.cpus_per_task
        # Since SLURM 22.05 srun does not take it from the batch script.
        srun_args.append(f"--cpus-per-task={resources.cpus_per_task}")
    executor.update_parameters(
        job_name=resources.name,
        time=resources.minutes,
        nodes=resources.nodes,
        ntasks_per_node=resources.num_tasks_per_node,
        signal_delay_s=resources.signal_delay,
        stderr_to_stdout=True,
        srun_args=srun_args,
        additional_parameters={"requeue": True},
        **optional,
    )
    return executor


class _DryExecutor(SlurmExecutor):
    """Can be made where there is no SLURM, to see the script."""

    @classmethod
    def affinity(cls) -> int:
        return 1


def batch_script(executor: SlurmExecutor, num_jobs: int) -> str:
    """What would be given to sbatch for so many jobs; several are an array."""
    if num_jobs > 1:
        executor.parameters["map_count"] = num_jobs
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def submit(jobs: Sequence[Checkpointable], resources: Resources, folder: Path) -> list[Job]:
    """Submit jobs to SLURM, several as one array.

    Raises:
        ValueError: there is no SLURM.
        submitit.core.utils.FailedJobError: sbatch refused them; it has said why.
    """
    if shutil.which("sbatch") is None:
        raise ValueError(
            "there is no sbatch on this machine; submit from a machine of the cluster, or train "
            "here with --local"
        )
    leave_other_jobs(os.environ)
    return slurm_executor(resources, folder).submit_array(jobs)


def leave_other_jobs(environ: MutableMapping[str, str]) -> None:
    """Remove what a job or launcher has said about itself: a new job would take it for its own.

    SLURM_CONF and defaults of sbatch (SBATCH_...) stay.
    """
    prefixes = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")
    for name in list(environ):
        if (name.startswith(prefixes) and name != "SLURM_CONF") or name in TORCHRUN_NAMES:
            del environ[name]


def state_of(job: Job) -> str:
    """PENDING, RUNNING and so on, as the controller says now; "unknown" if it does not say."""
    command = ["squeue", "--noheader", f"--jobs={job.job_id}", "--format=%T"]
    shown = subprocess.run(command, capture_output=True, text=True)
    return shown.stdout.strip() or "unknown"


def how_to_follow(job: Job) -> str:
    """Id and state of a job, and the commands that tell more."""
    return "\n".join(
        [
            f"Submitted job {job.job_id}, {state_of(job)}",
            f"  state:  squeue --jobs {job.job_id} --states all",
            f"  log:    tail -F {job.paths.stdout}",
            f"  cancel: scancel {job.job_id}",
        ]
    )


def run_locally(job: Checkpointable, resources: Resources, folder: Path) -> bool:
    """Run a job without SLURM, on this machine, and wait for it.

    Ctrl-C goes to the training, which stops with a checkpoint, and SIGTERM is handed on to it.

    Returns:
        Whether it came to its end.

    Raises:
        ValueError: the job asks for several machines.
    """
    if resources.nodes > 1:
        raise ValueError(f"--nodes is {resources.nodes}; with --local there is one machine")
    leave_other_jobs(os.environ)
    executor = LocalExecutor(folder, max_num_timeout=resources.max_timeouts)
    executor.update_parameters(
        timeout_min=resources.minutes,
        gpus_per_node=resources.gpus_per_node,
        tasks_per_node=resources.num_tasks_per_node,
        signal_delay_s=resources.signal_delay,
        stderr_to_stdout=True,
    )
    # What submitit starts inherits it; it would kill the training a second after a Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    running = executor.submit(job)
    # Of a job of submitit on this machine, the id is that of the process that looks after it.
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(int(running.job_id), number))
    print(f"Job {running.job_id}: tail -F {running.paths.stdout}", flush=True)
    while not running.done():
        time.sleep(POLL_SECONDS)
    results = [running.task(i).paths.result_pickle for i in range(running.num_tasks)]
    return all(x.exists() for x in results) and running.exception() is None
