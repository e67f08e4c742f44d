"""Start of the training processes, and the status with which the program ends."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing import ProcessExitedException

from soft_teacher.engine.process_place import ProcessPlace, find_place
from soft_teacher.engine.stop_signal import ForwardedSignal, exit_status


def launch_training(main: Callable[[argparse.Namespace], object], args: argparse.Namespace) -> None:
    """Run `main(args)` in every process of the training.

    Where torchrun or srun has started all of them, this one joins the others. Otherwise it starts
    --num-gpus processes on each of --num-machines, as Detectron2 does, and hands on stop signals.

    Args:
        main: a function of a module, so that it can be found by other processes.
        args: of Detectron2's `default_argument_parser`.

    Raises:
        SystemExit: a training process ended early, with a status of its own after a stop
            signal 128 plus its number, which is 130 for SIGINT, 140 for SIGUSR2 and 143 for
            SIGTERM.
        ValueError: the environment or the arguments cannot be, see `find_place`.
    """
    place = find_place(os.environ)
    if place is None:
        _start_processes(main, args)
    else:
        refuse_contradiction(args, place)
        _join(place)
        run_as_one_process(main, args)


def refuse_contradiction(args: argparse.Namespace, place: ProcessPlace) -> None:
    """Raise a ValueError where arguments ask for other processes than there are.

    1, the default, says nothing.
    """
    for option, asked, there in (
        ("--num-gpus", args.num_gpus, place.local_world_size),
        ("--num-machines", args.num_machines, place.num_machines),
    ):
        if asked not in (1, there):
            raise ValueError(
                f"{option} is {asked}, but {place.starter} has started the processes already: "
                f"{place.local_world_size} on each of {place.num_machines} machines. Leave "
                f"{option} out, and start one process for each GPU."
            )


def _join(place: ProcessPlace) -> None:
    """Do for this process what `launch` does for those that it starts."""
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(choose_device(place, torch.cuda.device_count()))
    os.environ.update(MASTER_ADDR=place.master_addr, MASTER_PORT=str(place.master_port))
    store, _, _ = next(rendezvous("env://", place.rank, place.world_size, timeout=DEFAULT_TIMEOUT))
    if place.num_machines == 1:
        # torchrun keeps the store when it starts its processes again, with the addresses of the
        # dead ones. Machines may count restarts differently, so several cannot go by it.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"attempt_{attempt}", store)
    dist.init_process_group(
        backend="NCCL" if has_gpu else "GLOO",
        store=store,
        world_size=place.world_size,
        rank=place.rank,
        timeout=DEFAULT_TIMEOUT,
    )
    comm.create_local_process_group(place.local_world_size)
    comm.synchronize()


def choose_device(place: ProcessPlace, num_visible: int) -> int:
    """Index of the GPU of a process; SLURM may show it all GPUs of its machine, or its own alone.

    Raises:
        ValueError: there are fewer GPUs than processes.
    """
    if num_visible == 1 and place.starter == "srun":
        return 0
    if num_visible < place.local_world_size:
        raise ValueError(
            f"{place.starter} started {place.local_world_size} processes on a machine that shows "
            f"them {num_visible} GPUs. Start one for each GPU."
        )
    return place.local_rank


def _start_processes(
    main: Callable[[argparse.Namespace], object], args: argparse.Namespace
) -> None:
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
    """Run `main(*args)` in one of the processes, and leave the process group after it.

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
