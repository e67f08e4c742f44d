"""What each of two processes runs in the distributed tests; results go to files."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from detectron2.engine import create_ddp_model, default_argument_parser, launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

import train_net
from soft_teacher.data.agreement import check_same_on_all_ranks
from soft_teacher.engine import trainer
from soft_teacher.engine.ema import EMATeacher
from soft_teacher.engine.launching import run_as_one_process
from soft_teacher.engine.loader_stream import LoaderStream
from soft_teacher.engine.precision import Precision
from soft_teacher.engine.running_statistics import RunningStatistics
from soft_teacher.engine.train_step import SoftTeacherStep, UnreadableDataError
from tiny import labeled_view, plain_view, tiny_model

EASY = {
    "SOFT_TEACHER.PSEUDO_LABELS.MIN_SCORE": 0.1,
    "SOFT_TEACHER.PSEUDO_LABELS.CLS_SCORE": 0.1,
    "SOFT_TEACHER.PSEUDO_LABELS.RPN_SCORE": 0.1,
    "SOFT_TEACHER.PSEUDO_LABELS.REG_VARIANCE": 10.0,
}


def launch_two(
    main: Callable[..., None], *args: object, timeout: timedelta = DEFAULT_TIMEOUT
) -> None:
    """Run `main(*args)`, paths as text, in two processes."""
    texts = [str(x) if isinstance(x, Path) else x for x in args]
    launch(run_as_one_process, 2, dist_url="auto", args=(main, *texts), timeout=timeout)


def _streams(rank: int) -> tuple[LoaderStream, LoaderStream]:
    def labeled(start):
        for i in range(start, 100):
            yield [labeled_view(10 * i + rank, num_boxes=1 + 2 * rank)]

    def unlabeled(start):
        for i in range(start, 100):
            # One process has an image without anything to find.
            view = plain_view(1000 + 10 * i + rank)
            if rank == 1:
                view["image"].zero_()
            yield [{"weak": view, "strong": view}]

    return LoaderStream(labeled), LoaderStream(unlabeled)


def _poison(step: SoftTeacherStep, rank: int) -> None:
    """Three iterations are bad on one process.

    In iteration 1, when DDP exchanges how it sorts gradients, the teacher of process 1 finds what
    is not finite; iteration 2 fails inside the student's forward there, iteration 3 has a NaN on
    process 0.

    With accumulation this happens in the last micro-step but one.
    """
    forward, last = step.student.forward, step.accumulation_steps
    annotate, bad = step.teacher.model.annotate, max(last - 1, 1)

    def is_bad(rank_that_fails: int, iteration: int) -> bool:
        micro_step = (step.labeled.num_consumed - bad) % last
        return micro_step == 0 and (rank, step.iter) == (rank_that_fails, iteration)

    def poisoned_annotate(views):
        if is_bad(1, 1):
            raise FloatingPointError("The teacher's predictions contain Inf/NaN.")
        return annotate(views)

    def poisoned(*args, **kwargs):
        if is_bad(1, 2):
            raise FloatingPointError("Predicted boxes or scores contain Inf/NaN.")
        losses = forward(*args, **kwargs)
        if is_bad(0, 3):
            losses["loss_cls"] = losses["loss_cls"] * float("nan")
        return losses

    step.teacher.model.annotate = poisoned_annotate
    step.student.forward = poisoned


def _make_step(labeled: LoaderStream, unlabeled: LoaderStream, **options) -> SoftTeacherStep:
    torch.set_num_threads(1)
    rank = comm.get_rank()
    # Different weights at first: DDP must make them one, and the teacher must follow.
    student = tiny_model(seed=rank, **EASY)
    model = create_ddp_model(student, broadcast_buffers=False, device_ids=None)
    parameters = [p for p in student.parameters() if p.requires_grad]
    return SoftTeacherStep(
        model,
        EMATeacher(student, 0.9),
        labeled,
        unlabeled,
        torch.optim.SGD(parameters, lr=0.01),
        Precision("cpu", False),
        **options,
    )


def train(folder: str, scope: str = "rank", accumulation_steps: int = 1) -> None:
    """Five steps, three of them bad on one process; save what each process ends with."""
    rank = comm.get_rank()
    options = {"normalizer_scope": scope, "accumulation_steps": accumulation_steps}
    step = _make_step(*_streams(rank), **options)
    student = step.student
    _poison(step, rank)
    missing, updates = None, []
    torch.manual_seed(rank)
    with EventStorage(0):
        for i in range(5):
            step.iter = i
            step.run_step()
            updates.append(step.teacher.num_updates)
            if i == 0:
                missing = [
                    n for n, p in student.named_parameters() if p.requires_grad and p.grad is None
                ]
    result = {
        "student": student.state_dict(),
        "teacher": step.teacher.model.state_dict(),
        "missing": missing,
        "updates": updates,
        "skipped": step.num_skipped,
        "consumed": [step.labeled.num_consumed, step.unlabeled.num_consumed],
    }
    torch.save(result, f"{folder}/{rank}.pth")


def lose_an_image(folder: str, accumulation_steps: int = 1) -> None:
    """At the end of its second step, in which DDP sorts its gradients, process 1 has no image."""
    rank = comm.get_rank()
    labeled, unlabeled = _streams(rank)

    def broken(start):
        for _ in range(2 * accumulation_steps - 1):
            yield next(unlabeled)
        raise OSError("Cannot read the image lost.png")

    step = _make_step(
        labeled,
        LoaderStream(broken) if rank == 1 else unlabeled,
        accumulation_steps=accumulation_steps,
    )
    message = ""
    with EventStorage(0):
        step.run_step()
        step.iter = 1
        try:
            step.run_step()
        except UnreadableDataError as error:
            message = str(error)
    consumed = [step.labeled.num_consumed, step.unlabeled.num_consumed]
    torch.save({"message": message, "consumed": consumed}, f"{folder}/lost_{rank}.pth")


def run_train_net(config_file: str, output: str, resume: bool) -> None:
    """train_net.py on two processes, scalars gathered every second step."""
    torch.set_num_threads(1)
    trainer.LOG_PERIOD = 2
    arguments = ["--config-file", config_file, *(["--resume"] if resume else [])]
    args = default_argument_parser().parse_args([*arguments, "OUTPUT_DIR", output])
    train_net.main(args)


def average_statistics(folder: str) -> None:
    """Give a live batch norm other running statistics on each process, and average them."""
    norm = torch.nn.BatchNorm2d(3)
    norm.running_mean.fill_(float(comm.get_rank()))
    norm.running_var.fill_(1.0 + 4.0 * comm.get_rank())
    RunningStatistics(torch.nn.Sequential(norm)).average_over_processes()
    torch.save(norm.state_dict(), f"{folder}/norm_{comm.get_rank()}.pth")


def read_other_data(folder: str) -> None:
    """Process 1 has one image less than process 0; both write what they are told."""
    rank = comm.get_rank()
    records = [
        {"file_name": f"{i}.png", "image_id": i, "height": 4, "width": 5} for i in range(5 - rank)
    ]
    try:
        check_same_on_all_ranks(records, "labeled sets")
    except ValueError as error:
        message = str(error)
    check_same_on_all_ranks(records[:4], "labeled sets")
    torch.save({"message": message}, f"{folder}/other_{rank}.pth")


def list_threads(folder: str) -> None:
    """Names of this process' threads while the group is in use, and when it has been left."""
    during = []

    def use_group() -> None:
        comm.all_gather(comm.get_rank())
        during.extend(_thread_names())

    rank = comm.get_rank()
    run_as_one_process(use_group)
    torch.save((during, _thread_names()), f"{folder}/threads_{rank}.pth")


def _thread_names() -> list[str]:
    return [x.read_text().strip() for x in Path("/proc/self/task").glob("*/comm")]
