"""Start of the training processes, and the status with which the program ends."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable

import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from soft_teacher.engine.stop_signal import ForwardedSignal, exit_status


def launch_training(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Run `main(args)` in --num-gpus processes on each of --num-machines, as Detectron2 does.

    A stop signal to this process reaches all of its training processes.

    Args:
        main: a function of a module, so that it can be found by other processes.
        args: of Detectron2's `default_argument_parser`.

    Raises:
        SystemExit: a training process ended early, with a status of its own after a stop
            signal 128 plus its number, which is 130 for SIGINT, 140 for SIGUSR2 and 143 for
            SIGTERM.
    """
    forwarded = ForwardedSignal()
    several = args.num_gpus * args.num_machines > 1
    with forwarded.caught() if several else contextlib.nullcontext():
        try:
            launch(
                run_as_one_process,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url="auto" if args.num_machines == 1 else args.dist_url,
                args=(main, args),
            )
        except ProcessExitedException as error:
            print(f"{error}", file=sys.stderr)
            if forwarded.number:
                sys.exit(exit_status(forwarded.number))
            sys.exit(error.exit_code if error.exit_code > 0 else exit_status(-error.exit_code))


def run_as_one_process(main: Callable[..., object], *args: object) -> None:
    """Run `main(*args)` in a process that `launch` started, and leave the process group after it.

    After an error the group stays as it is: to leave it could mean to wait for other processes.

    Raises:
        SystemExit: `main` was interrupted, or ended itself so.
    """
    try:
        main(*args)
    except KeyboardInterrupt:
        # Where nothing was to be saved. torch's launcher would take it for success.
        sys.exit(exit_status(signal.SIGINT))
    except SystemExit:
        _leave_process_group()
        raise
    _leave_process_group()


def _leave_process_group() -> None:
    """End the group's threads: one that is still at work when Python ends aborts the process."""
    if not dist.is_initialized():
        return
    dist.destroy_process_group()
    # Gloo's threads live for as long as anyone refers to its groups, as Detectron2 goes on to do.
    comm._get_global_gloo_group.cache_clear()
    comm.create_local_process_group.cache_clear()
    comm._LOCAL_PROCESS_GROUP = None
