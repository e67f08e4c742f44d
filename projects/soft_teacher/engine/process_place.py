"""Where a process stands among those of its training, when something else has started them all.

torchrun says so in RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
SLURM's srun says so in the variables of its step. Batch scripts and the shells of salloc have
variables of the same kind, which describe the allocation, although srun has not started them: there
SLURM_STEP_NUM_TASKS is missing or 1.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

TORCHRUN_NAMES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
STEP_NAMES = (
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_STEP_TASKS_PER_NODE",
)


@dataclass(frozen=True)
class ProcessPlace:
    """One process among those of a training.

    Attributes:
        starter: "torchrun" or "srun", for messages.
        rank: number of the process in the training, from 0.
        world_size: processes of the training.
        local_rank: number of the process on its machine, from 0.
        local_world_size: processes on each machine.
        master_addr: name or address of the machine of rank 0.
        master_port: where rank 0 listens on it.
    """

    starter: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    master_addr: str
    master_port: int

    def __post_init__(self) -> None:
        """Detectron2 takes for granted that each machine has the same number, in order."""
        layout = f"rank {self.rank} of {self.world_size} is number {self.local_rank} of "
        layout += f"{self.local_world_size} on its machine"
        if self.world_size % self.local_world_size:
            raise ValueError(
                f"{self.starter} started {self.world_size} processes, {self.local_world_size} of "
                "them on this machine, so not all machines have the same number. Start as many on "
                "each."
            )
        if self.rank >= self.world_size or self.rank % self.local_world_size != self.local_rank:
            raise ValueError(
                f"{self.starter} started processes in an order that cannot be used: {layout}. The "
                "first machine must have the first ranks, and so on (srun --distribution=block)."
            )

    @property
    def num_machines(self) -> int:
        return self.world_size // self.local_world_size


def find_place(environ: Mapping[str, str]) -> ProcessPlace | None:
    """The place of this process, or None if it is alone or is to start the others itself.

    LOCAL_RANK is what tells of torchrun, or of a launcher that does as it does. It goes before
    SLURM: torchrun may itself be run by srun.

    Args:
        environ: environment variables.

    Raises:
        ValueError: variables are missing or are no numbers, or machines have unequal numbers of
            processes.
    """
    if "LOCAL_RANK" in environ:
        return _place_by_torchrun(environ)
    if "SLURM_PROCID" in environ and _int(environ, "SLURM_STEP_NUM_TASKS", "1") > 1:
        return _place_by_srun(environ)
    return None


def _place_by_torchrun(environ: Mapping[str, str]) -> ProcessPlace:
    _refuse_missing(environ, TORCHRUN_NAMES, "LOCAL_RANK is set, as torchrun does")
    rank, world_size, local_rank, local_world_size = (_int(environ, x) for x in TORCHRUN_NAMES[:4])
    return ProcessPlace(
        "torchrun",
        rank,
        world_size,
        local_rank,
        local_world_size,
        environ["MASTER_ADDR"],
        _int(environ, "MASTER_PORT"),
    )


def _place_by_srun(environ: Mapping[str, str]) -> ProcessPlace:
    _refuse_missing(environ, STEP_NAMES, "SLURM_STEP_NUM_TASKS is set, as srun does")
    nodes = environ["SLURM_STEP_NODELIST"]
    counts = tasks_per_node(environ["SLURM_STEP_TASKS_PER_NODE"])
    if len(set(counts)) > 1:
        raise ValueError(
            f"srun started {', '.join(str(x) for x in counts)} tasks on the machines {nodes}. "
            "Start as many on each: give --ntasks-per-node, and --nodes times that as --ntasks."
        )
    own_port = port_of_job(_int(environ, "SLURM_JOB_ID"), _int(environ, "SLURM_STEP_ID"))
    return ProcessPlace(
        "srun",
        _int(environ, "SLURM_PROCID"),
        _int(environ, "SLURM_STEP_NUM_TASKS"),
        _int(environ, "SLURM_LOCALID"),
        counts[0],
        # On one machine nothing depends on whether its name can be resolved.
        environ.get("MASTER_ADDR") or (first_host(nodes) if len(counts) > 1 else "127.0.0.1"),
        _int(environ, "MASTER_PORT", str(own_port)),
    )


def count_cpus(environ: Mapping[str, str]) -> int:
    """CPUs of this machine, or of SLURM's job on it, which may have a part of them only."""
    return _int(environ, "SLURM_CPUS_ON_NODE", str(os.cpu_count() or 1))


def _refuse_missing(environ: Mapping[str, str], names: tuple[str, ...], sign: str) -> None:
    missing = [x for x in names if x not in environ]
    if missing:
        raise ValueError(f"{sign}, but not {', '.join(missing)}. Set all of them, or unset all.")


def _int(environ: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = environ.get(name, default)
    if text is None or not text.isdecimal():
        raise ValueError(f"The environment variable {name} is {text!r}, which is not a number.")
    return int(text)


def tasks_per_node(text: str) -> list[int]:
    """SLURM's way to say how many tasks each node has: "2(x3),1" is [2, 2, 2, 1].

    Raises:
        ValueError: the text is not of that kind.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ValueError(f"SLURM_STEP_TASKS_PER_NODE is {text!r}, which is not like 2(x3),1.")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def first_host(nodes: str) -> str:
    """The first of a list of nodes in SLURM's notation: "rack[02-04,7]n[1,5],x" is rack02n1."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)[0]
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first)


def port_of_job(job: int, step: int = 0) -> int:
    """A port that all processes of a job know, and neighbors on a machine do not share.

    It lies below those that the system gives to whoever asks for any (from 32768).
    """
    return 15000 + (31 * job + step) % 17000
