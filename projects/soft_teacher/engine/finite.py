"""Agreement of all processes on whether and how to go on, and names for what is not finite."""

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn


class NonFiniteStepError(ArithmeticError):
    """A loss or gradient is not finite on some process; raised on all of them together.

    The message says what was wrong on this process, and is empty if nothing was.
    """


def agree_on_flags(flags: Tensor) -> Tensor:
    """The largest value of each flag over all processes (one collective, on the flags' device)."""
    if comm.get_world_size() > 1:
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return flags


def name_non_finite_losses(losses: dict[str, Tensor]) -> str:
    """The names and values of 0-d losses that are not finite, for the log."""
    bad = [f"{k} = {float(v.detach())}" for k, v in losses.items() if not torch.isfinite(v)]
    return ", ".join(bad)


def name_non_finite_gradients(model: nn.Module, at_most: int = 3) -> str:
    """The first parameters whose gradient has no finite norm, for the log."""
    bad = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not torch.isfinite(parameter.grad.norm())
    ]
    if not bad:
        return "the norm of all gradients together overflows"
    return f"non-finite gradient of {', '.join(bad[:at_most])} ({len(bad)} parameters)"
