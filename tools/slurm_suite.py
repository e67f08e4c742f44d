#!/usr/bin/env python
r"""Train a table on a SLURM cluster: each training of tools/run_suite.py is a job of an array.

    python tools/slurm_suite.py --gpus 8 --partition gpu --time 24:00:00 -- \
        configs/suites/table_6.yaml --base configs/coco/soft_teacher_R_50_FPN_10pct.yaml
    python tools/slurm_suite.py --gpus 8 --dry-run -- SUITE.yaml --base FILE --seeds 0

What follows the first "--" is the command line of run_suite.py, without --processes, which is the
number of GPUs. Each job goes on after preemption and time limit, as those of tools/slurm_train.py
do. What others start from is trained by whoever comes first; a job that needs it waits. What is
finished is passed over, so the same command trains what is missing. The command that makes the
table of what is finished is printed.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from submitit.core.utils import FailedJobError

from soft_teacher.engine.slurm_arguments import add_job_options, resources_for
from soft_teacher.engine.slurm_job import SuiteCellJob, load_module
from soft_teacher.engine.slurm_submission import (
    batch_script,
    how_to_follow,
    slurm_executor,
    submit,
)

RUN_SUITE = Path(__file__).resolve().with_name("run_suite.py")


def make_parser() -> argparse.ArgumentParser:
    """The command line in front of the first "--"."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage="%(prog)s --gpus N [option ...] -- SUITE --base CONFIG [option of run_suite.py ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    group = add_job_options(parser)
    group.add_argument(
        "--gpus",
        type=int,
        required=True,
        metavar="N",
        help="of each training, on one machine; 0 to train on the CPU in one process",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Submit, or print the batch script; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser()
    end = arguments.index("--") if "--" in arguments else len(arguments)
    args = parser.parse_args(arguments[:end])
    suite_arguments = arguments[end + 1 :]
    if "--processes" in suite_arguments:
        parser.error("--processes is the number of --gpus; leave it out")
    # In front, because KEY VALUE pairs may stand at the end.
    suite_arguments = ["--processes", str(max(args.gpus, 1)), *suite_arguments]
    try:
        return act(args, suite_arguments)
    except ValueError as error:
        parser.error(str(error))


def act(args: argparse.Namespace, suite_arguments: list[str]) -> int:
    """Hand the trainings in; the exit status."""
    # SLURM starts one task, and that one process for each GPU.
    resources = resources_for(args, nodes=1, gpus_per_node=args.gpus, tasks_per_node=1)
    folder = args.job_dir.absolute()
    # Without the interpreter and the program.
    commands = [x[2:] for x in load_module(RUN_SUITE).cell_commands(suite_arguments)]
    jobs = [SuiteCellJob(RUN_SUITE, tuple(x)) for x in commands]
    if args.dry_run:
        print(batch_script(slurm_executor(resources, folder), len(jobs)))
        for command in commands:
            print(shlex.join(["#", "run_suite.py", *command]))
    else:
        try:
            for job in submit(jobs, resources, folder):
                print(how_to_follow(job))
        except FailedJobError:
            # sbatch's own words are above.
            print("SLURM refused the jobs; nothing was submitted.", file=sys.stderr)
            return 1
    table = ["python", "tools/run_suite.py", "--report-only", *suite_arguments]
    print(f"The table, when jobs are finished: {shlex.join(table)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
