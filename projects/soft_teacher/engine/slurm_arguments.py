"""The command line of tools/slurm_train.py: train_net.py's, and what a job asks of SLURM.

What jobs ask for is also that of tools/slurm_suite.py.
"""

import argparse
import re
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser

from soft_teacher.config import load_config
from soft_teacher.engine.slurm_submission import Resources

EXTRA_OPTIONS = {
    "partition": "where to run",
    "account": "who pays",
    "qos": "quality of service",
    "constraint": "features that the nodes must have",
    "comment": "some clusters ask for one",
    "mem": "memory of each node, such as 64G",
}


def make_parser(description: str) -> argparse.ArgumentParser:
    """Detectron2's parser and a group of options about the job."""
    parser = default_argument_parser(epilog=description)
    group = add_job_options(parser)
    group.add_argument("--nodes", type=int, default=1, help="machines (default: 1)")
    group.add_argument(
        "--gpus-per-node",
        type=int,
        required=True,
        metavar="N",
        help="GPUs of each machine, with one process each; 0 to train on the CPU",
    )
    group.add_argument(
        "--tasks-per-node", type=int, metavar="N", help="processes of each machine, on the CPU"
    )
    group.add_argument(
        "--array",
        nargs="+",
        metavar=("KEY", "VALUE"),
        help="one job for each value of a config key, each with an OUTPUT_DIR of its own",
    )
    group.add_argument("--local", action="store_true", help="run here and now, without SLURM")
    return parser


def add_job_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the options that all jobs have, whatever runs in them; returns their group."""
    group = parser.add_argument_group("job")
    group.add_argument("--cpus-per-task", type=int, metavar="N", help="CPUs of each process")
    group.add_argument(
        "--time", default="24:00:00", help="limit, in SLURM's notation (default: %(default)s)"
    )
    group.add_argument(
        "--signal-delay",
        type=int,
        default=120,
        metavar="SECONDS",
        help="before the limit at which training saves and stops (default: %(default)s)",
    )
    group.add_argument(
        "--max-timeouts",
        type=int,
        default=30,
        metavar="N",
        help="times that a job is queued again after its limit (default: %(default)s)",
    )
    group.add_argument("--job-name", default="soft_teacher", help="(default: %(default)s)")
    for name, text in EXTRA_OPTIONS.items():
        group.add_argument(f"--{name}", help=text)
    group.add_argument(
        "--job-dir",
        type=Path,
        default=Path("output/slurm"),
        help="folder of batch scripts and logs, seen by all nodes (default: %(default)s)",
    )
    group.add_argument("--dry-run", action="store_true", help="print the batch script only")
    return group


def read_resources(args: argparse.Namespace) -> Resources:
    """What the job of a training asks for: one task for each GPU.

    Raises:
        ValueError: a number cannot be.
    """
    resources = resources_for(args, args.nodes, args.gpus_per_node, args.tasks_per_node)
    if resources.gpus_per_node and resources.num_tasks_per_node != resources.gpus_per_node:
        raise ValueError(
            f"--tasks-per-node is {args.tasks_per_node} with --gpus-per-node "
            f"{args.gpus_per_node}; there is one task for each GPU, so leave it out"
        )
    return resources


def resources_for(
    args: argparse.Namespace, nodes: int, gpus_per_node: int, tasks_per_node: int | None
) -> Resources:
    """What a job asks for, by the options that all jobs have and these numbers.

    Raises:
        ValueError: a number cannot be.
    """
    return Resources(
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        tasks_per_node=tasks_per_node,
        minutes=read_minutes(args.time),
        signal_delay=args.signal_delay,
        max_timeouts=args.max_timeouts,
        cpus_per_task=args.cpus_per_task,
        name=args.job_name,
        extra={name: getattr(args, name) for name in EXTRA_OPTIONS},
    )


def read_minutes(text: str) -> int:
    """A time in SLURM's notation, in minutes; seconds count as one more.

    Minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes or
    days-hours:minutes:seconds.

    Raises:
        ValueError: it is none of these.
    """
    if not re.fullmatch(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}", text):
        raise ValueError(f"--time is {text!r}; write it like 90, 12:00:00 or 2-00:00:00")
    days, dash, rest = text.rpartition("-")
    numbers = [int(x) for x in rest.split(":")]
    if dash:
        hours, minutes, seconds = numbers + [0] * (3 - len(numbers))
    else:
        hours, minutes, seconds = [0] * (len(numbers) < 3) + numbers + [0] * (len(numbers) < 2)
    return 60 * (24 * int(days or 0) + hours) + minutes + (seconds > 0)


def read_commands(args: argparse.Namespace) -> list[tuple[str, ...]]:
    """The arguments of train_net.py, for each of the jobs.

    With --resume, so that a job that starts again goes on. An evaluation alone is simply done
    again, for there it would mean another checkpoint.

    Raises:
        ValueError: processes are asked for in a second way, or jobs would share a folder.
    """
    if (args.num_gpus, args.num_machines, args.machine_rank) != (1, 1, 0):
        raise ValueError(
            "--num-gpus, --num-machines and --machine-rank have no meaning in a job; give "
            "--gpus-per-node and --nodes"
        )
    common = ["--config-file", args.config_file]
    common += ["--eval-only"] if args.eval_only else []
    common += ["--resume"] if args.resume or not args.eval_only else []
    key, values, opts = _split_array(args)
    cfg = load_config(args.config_file, opts)
    if key is None:
        return [(*common, *opts)]
    folders = [array_folder(cfg, key, x) for x in values]
    if len(set(folders)) < len(folders):
        raise ValueError(f"--array {key} {' '.join(values)}: two jobs would have one OUTPUT_DIR")
    return [
        (*common, *opts, key, value, "OUTPUT_DIR", folder)
        for value, folder in zip(values, folders, strict=True)
    ]


def _split_array(args: argparse.Namespace) -> tuple[str | None, list[str], list[str]]:
    """--array's key and values, and the KEY VALUE pairs, which argparse takes for values, too."""
    if args.array is None:
        return None, [], args.opts
    known = _all_keys(load_config(args.config_file))
    key, *rest = args.array
    if key not in known:
        raise ValueError(f"--array: there is no config key {key}")
    end = next((i for i, x in enumerate(rest) if x in known), len(rest))
    if end == 0:
        raise ValueError(f"--array {key}: give the values of the jobs")
    return key, rest[:end], rest[end:] + args.opts


def _all_keys(cfg: CfgNode, prefix: str = "") -> set[str]:
    keys = set()
    for name, value in cfg.items():
        full_name = f"{prefix}{name}"
        keys |= _all_keys(value, f"{full_name}.") if isinstance(value, CfgNode) else {full_name}
    return keys


def array_folder(cfg: CfgNode, key: str, value: str) -> str:
    """OUTPUT_DIR of the job of an array that has this value.

    A fold takes the place of "{fold}" in it. Other jobs get a folder within it, named after key
    and value.
    """
    if key == "DATASETS.FOLD" and "{fold}" in cfg.OUTPUT_DIR:
        return cfg.OUTPUT_DIR.replace("{fold}", value)
    plain = re.sub(r"[^\w.+-]+", "_", value).strip("_")
    return f"{cfg.OUTPUT_DIR}/{key.rpartition('.')[2].lower()}_{plain}"
