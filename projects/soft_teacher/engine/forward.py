"""The forward pass of a training step, which every process enters and leaves in the same way.

The processes wait for each other right behind it, so neither an unreadable image nor a value that
is not finite may end it by an exception.
"""

import contextlib
from typing import NamedTuple, NoReturn

import torch
from detectron2.layers import NaiveSyncBatchNorm
from torch import Tensor, nn

from soft_teacher.engine.precision import Precision
from soft_teacher.modeling.guidance import Guidance


class Batch(NamedTuple):
    """The views of one forward pass.

    Attributes:
        labeled: labeled views.
        weak, strong: two views of each unlabeled image; empty if it is supervised.
        error: why there are no views, or None.
    """

    labeled: list[dict]
    weak: list[dict]
    strong: list[dict]
    error: OSError | None = None


class Forward(NamedTuple):
    """What a forward pass gives.

    Attributes:
        losses: of the student, 0-d.
        guidance: of the teacher, with what the student left in it; None if it was not asked.
        failure: why there are no losses, or None.
    """

    losses: dict[str, Tensor]
    guidance: Guidance | None = None
    failure: str | None = None

    @property
    def statistics(self) -> dict[str, Tensor]:
        return {} if self.guidance is None else self.guidance.statistics

    @property
    def normalizers(self) -> dict[str, Tensor]:
        return {} if self.guidance is None else self.guidance.normalizers


def without_ddp(model: nn.Module) -> nn.Module:
    """The model in its DDP wrapper, or itself if it has none."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def ddp_devices(device: torch.device) -> list[torch.device] | None:
    """DDP's `device_ids` for a model on this device; None for one on the CPU.

    Detectron2 takes the number of the process on its machine. But SLURM may show each process its
    own GPU alone, which then is number 0 for all.
    """
    return [device] if device.type == "cuda" else None


def refuse_synchronized_norms(model: nn.Module) -> None:
    """Raise a ValueError where processes would wait for each other inside of the forward pass.

    One that has no images, or whose RPN predicts what is not finite, leaves it early; the others
    would wait for its statistics, and it for their flags.
    """
    kinds = (nn.SyncBatchNorm, NaiveSyncBatchNorm)
    name = next((k for k, x in model.named_modules() if isinstance(x, kinds)), None)
    if name is not None:
        raise ValueError(
            f"{name} is a synchronized batch norm, with which several processes could wait for "
            'each other for ever. Choose "GN", "FrozenBN" or "BN" for MODEL.RESNETS.NORM, '
            "MODEL.FPN.NORM and the norms of the heads."
        )


def run_forward(
    model: nn.Module, teacher: nn.Module, precision: Precision, batch: Batch
) -> Forward:
    """The losses of a batch, or the reason why there are none.

    Detectron2's RPN raises inside forward when it predicts non-finite values; on other processes
    the same step may be fine, so the error becomes a flag that all agree on.
    """
    guidance, failure = None, None if batch.error is None else str(batch.error)
    if failure is None and batch.weak:
        try:
            with precision.teacher_autocast():
                guidance = teacher.annotate(batch.weak)
        except FloatingPointError as error:
            failure = str(error)
    if failure is not None:
        return _enter_with_nothing(model, failure)
    inputs = (batch.labeled, batch.strong, guidance) if batch.weak else (batch.labeled,)
    try:
        with precision.autocast():
            return Forward(model(*inputs), guidance)
    except FloatingPointError as error:
        return Forward({}, failure=str(error))


class _NothingToDoError(Exception):
    """Ends a forward pass that was entered for the other processes' sake."""


def _enter_with_nothing(model: nn.Module, failure: str) -> Forward:
    """Enter the student's forward pass and leave it at once.

    In one of the first forward passes DDP's processes exchange how they sort gradients, so none
    may stay away; without images or guidance the student itself has nothing to do.
    """

    def refuse(module: nn.Module, args: tuple) -> NoReturn:
        raise _NothingToDoError

    hook = without_ddp(model).register_forward_pre_hook(refuse)
    try:
        with contextlib.suppress(_NothingToDoError):
            model([])
    finally:
        hook.remove()
    return Forward({}, failure=failure)
