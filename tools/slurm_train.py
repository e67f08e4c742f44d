#!/usr/bin/env python
r"""Train on a SLURM cluster: train_net.py as a job that goes on after preemption and time limit.

    python tools/slurm_train.py --config-file FILE --nodes 1 --gpus-per-node 8 --partition gpu
    python tools/slurm_train.py --config-file FILE --gpus-per-node 8 --array DATASETS.FOLD 1 2 3 \
        OUTPUT_DIR 'output/10pct/{fold}'
    python tools/slurm_train.py --config-file FILE --gpus-per-node 8 --dry-run
    python tools/slurm_train.py --config-file FILE --gpus-per-node 0 --tasks-per-node 2 --local

Arguments are those of train_net.py but --num-gpus and its kin: there is one task for each GPU.
Training goes on from OUTPUT_DIR's last checkpoint if there is one. docs/slurm.md says what happens
when.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from submitit.core.utils import FailedJobError

from soft_teacher.engine.slurm_arguments import make_parser, read_commands, read_resources
from soft_teacher.engine.slurm_job import TrainingJob
from soft_teacher.engine.slurm_submission import (
    Resources,
    batch_script,
    how_to_follow,
    run_locally,
    slurm_executor,
    submit,
)

SCRIPT = Path(__file__).resolve().parents[1] / "train_net.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Submit, or do what else is asked for; the exit status."""
    parser = make_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    args = parser.parse_args(argv)
    if not Path(args.config_file).is_file():
        parser.error(f"there is no file {args.config_file!r}; give --config-file")
    try:
        resources = read_resources(args)
        jobs = [TrainingJob(SCRIPT, x) for x in read_commands(args)]
        return act(args, jobs, resources)
    except ValueError as error:
        parser.error(str(error))


def act(args: argparse.Namespace, jobs: list[TrainingJob], resources: Resources) -> int:
    """Do with the jobs what the options ask for; the exit status."""
    folder = args.job_dir.absolute()
    if args.dry_run:
        print(batch_script(slurm_executor(resources, folder), len(jobs)))
        return 0
    if args.local:
        for job in jobs:
            if not run_locally(job, resources, folder):
                print("It did not come to its end, see its log. The same command goes on.")
                return 1
        return 0
    try:
        submitted = submit(jobs, resources, folder)
    except FailedJobError:
        # sbatch's own words are above.
        print("SLURM refused the job; nothing was submitted.", file=sys.stderr)
        return 1
    for job in submitted:
        print(how_to_follow(job))
    return 0


if __name__ == "__main__":
    sys.exit(main())
