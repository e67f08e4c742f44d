"""Agreement of all processes on whether and how to go on, and names for what is not finite."""

import math

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn


def agree_on_flags(flags: Tensor) -> Tensor:
    """The largest value of each flag over all processes (one collective, on the flags' device)."""
    if comm.get_world_size() > 1:
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return flags


def name_non_finite_losses(values: dict[str, float]) -> str:
    """The names and values of scalars that are not finite, for the log."""
    bad = [f"{k} = {v}" for k, v in values.items() if not math.isfinite(v)]
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
