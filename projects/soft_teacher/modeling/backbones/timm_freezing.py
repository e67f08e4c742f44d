"""Stop the training of the first feature levels of a timm network."""

import torch
from torch import nn

from soft_teacher.modeling.backbones.frozen_norm import freeze_batch_norms
from soft_teacher.modeling.backbones.timm_sizes import probe_levels


def freeze_levels(net: nn.Module, num_levels: int, in_chans: int) -> None:
    """Stop the training of all that the first `num_levels` feature levels depend on, in place.

    That is the stem and every block up to the last of these levels: 1 freezes what gives the
    first level of OUT_INDICES ("res2" as a rule; MODEL.BACKBONE.FREEZE_AT 2 of Detectron2's
    ResNet), 0 freezes nothing. Batch norms among it are frozen whole, and nothing among it is
    dropped at random any more.

    Since timm lays its networks out in several ways, the parameters are found by asking autograd
    which of them reach the level.

    Raises:
        ValueError: the network has fewer levels.
    """
    count = len(net.feature_info.reduction())
    if not 0 <= num_levels <= count:
        raise ValueError(f"MODEL.TIMM.FREEZE_AT is {num_levels}; choose 0 to {count}, the levels.")
    if num_levels == 0:
        return
    _, levels, stand_ins = probe_levels(net, in_chans)
    total = sum(level.sum() for level in levels[:num_levels])
    grads = torch.autograd.grad(total, list(stand_ins.values()), allow_unused=True)
    for name, grad in zip(stand_ins, grads, strict=True):
        if grad is not None:
            net.get_parameter(name).requires_grad_(False)
    freeze_batch_norms(net, lambda norm: norm.affine and not norm.weight.requires_grad)
    _stop_dropping(net)


def _stop_dropping(net: nn.Module) -> None:
    """Switch dropout and stochastic depth off in all blocks that are frozen whole."""
    from timm.layers import DropPath

    for block in net.modules():
        parameters = list(block.parameters())
        if not parameters or any(p.requires_grad for p in parameters):
            continue
        for module in block.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
            elif isinstance(module, nn.Dropout):
                module.p = 0.0
