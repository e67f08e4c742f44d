"""Batch norms with fixed statistics, including those of timm that apply an activation too."""

from collections.abc import Callable

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """A frozen batch norm followed by what timm's `BatchNormAct2d` does after its norm.

    The tensors keep their names, so that checkpoints of either kind fit the other.
    """

    def __init__(self, num_features: int, eps: float, drop: nn.Module, act: nn.Module) -> None:
        super().__init__(num_features, eps)
        self.drop = drop
        self.act = act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map N,C,H,W to N,C,H,W."""
        return self.act(self.drop(super().forward(x)))


def freeze_batch_norms(
    module: nn.Module, chosen: Callable[[_BatchNorm], bool] = lambda norm: True
) -> None:
    """Replace the chosen batch norms inside `module` by frozen ones, in place.

    In evaluation mode the outputs stay the same.

    Raises:
        ValueError: a norm has no frozen counterpart that computes the same.
    """
    for name, child in module.named_children():
        if not isinstance(child, _BatchNorm):
            freeze_batch_norms(child, chosen)
        elif chosen(child):
            setattr(module, name, _to_frozen(child))


def _to_frozen(norm: _BatchNorm) -> FrozenBatchNorm2d:
    """The frozen counterpart of a norm; it shares the running statistics' memory."""
    # timm is optional: only who has a timm model in hand comes here.
    from timm.layers import BatchNormAct2d

    # A subclass with its own forward() may do anything, hence the functions are compared.
    forward = type(norm).forward
    known = (nn.BatchNorm2d.forward, BatchNormAct2d.forward)
    if not isinstance(norm, nn.BatchNorm2d) or forward not in known or norm.running_mean is None:
        raise ValueError(
            f"{type(norm).__name__} cannot be frozen exactly: "
            "set MODEL.TIMM.FREEZE_NORM False and MODEL.TIMM.FREEZE_AT 0."
        )
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(norm)
    if forward is nn.BatchNorm2d.forward:
        return frozen
    with_act = FrozenBatchNormAct2d(norm.num_features, norm.eps, norm.drop, norm.act)
    for name, buffer in frozen.named_buffers():
        setattr(with_act, name, buffer)
    return with_act
