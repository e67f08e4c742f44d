"""The optimizer that SOLVER describes."""

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import CycleBatchNormList
from detectron2.layers.batch_norm import LayerNorm
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping, reduce_param_groups
from torch import nn

NO_DECAY = ("relative_position_bias_table", "absolute_pos_embed", "logit_scale")
"""Last parts of the names of parameters without weight decay, as Swin's authors train detectors,
and Swin V2, whose attention has the last one (github.com/microsoft/Swin-Transformer).

Norms are the other ones: SOLVER.WEIGHT_DECAY_NORM, which Detectron2 has at 0. A backbone may name
more, see `parameters_without_decay` of `TimmBackbone`.
"""

_OWN_NORMS = (LayerNorm, CycleBatchNormList)
"""Detectron2's own classes of norms, which its rule for norms does not know."""

_KEYS = {"SGD": "momentum", "ADAMW": "betas"}
"""What groups of parameters have with one optimizer and not with the other."""


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build SOLVER.OPTIMIZER for what of `model` is trained, with Detectron2's gradient clipping.

    Raises:
        ValueError: there is no such optimizer.
    """
    solver = cfg.SOLVER
    _check_name(solver.OPTIMIZER)
    if solver.OPTIMIZER == "SGD":
        return build_sgd(cfg, model)
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        overrides={name: {"weight_decay": 0.0} for name in NO_DECAY},
    )
    groups = reduce_param_groups(groups + _exceptions(solver, model))
    optimizer = torch.optim.AdamW(groups, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)
    return maybe_add_gradient_clipping(cfg, optimizer)


def _exceptions(solver: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """Groups that overwrite what Detectron2's rules say of the same parameters."""
    norms, others = [], []
    for module in model.modules():
        if isinstance(module, _OWN_NORMS):
            norms.extend(module.named_parameters(recurse=False))
        if hasattr(module, "parameters_without_decay"):
            others.extend(p for p in module.parameters_without_decay() if p.requires_grad)
    groups = [{"params": others, "weight_decay": 0.0}]
    if solver.WEIGHT_DECAY_NORM is not None:
        # With Detectron2 a rule for biases goes before that for norms.
        names = ("weight",) if solver.WEIGHT_DECAY_BIAS is not None else ("weight", "bias")
        params = [p for name, p in norms if p.requires_grad and name in names]
        groups.append({"params": params, "weight_decay": solver.WEIGHT_DECAY_NORM})
    return groups


def refuse_state_of_another(name: str, state: Mapping[str, Any]) -> None:
    """Raise a ValueError for a saved optimizer that is not the one which goes on.

    Args:
        name: SOLVER.OPTIMIZER.
        state: `state_dict()` of the optimizer in a checkpoint.
    """
    others = {key: other for other, key in _KEYS.items() if other != name}
    for group in state["param_groups"]:
        for key in others.keys() & group.keys():
            raise ValueError(
                f"SOLVER.OPTIMIZER is {name!r}, but the checkpoint was trained with "
                f"{others[key]!r}: resume with that one, or start from its weights "
                "(MODEL.WEIGHTS) in another OUTPUT_DIR."
            )


def _check_name(name: str) -> None:
    if name not in _KEYS:
        raise ValueError(f"SOLVER.OPTIMIZER is {name!r}; choose one of {tuple(_KEYS)}.")
