"""Normalizers of the unlabeled losses that all processes have in common."""

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import Tensor

from soft_teacher.modeling.guidance import check_choice

NORMALIZER_SCOPES = ("rank", "global")


def read_normalizer_scope(cfg: CfgNode) -> str:
    """SOFT_TEACHER.NORMALIZER_SCOPE.

    Raises:
        ValueError: it is not among its choices, or excluded by another key.
    """
    scope, steps = cfg.SOFT_TEACHER.NORMALIZER_SCOPE, cfg.SOLVER.ACCUMULATION_STEPS
    check_choice("SOFT_TEACHER.NORMALIZER_SCOPE", scope, NORMALIZER_SCOPES)
    if scope == "global" and steps > 1:
        raise ValueError(
            "SOFT_TEACHER.NORMALIZER_SCOPE is 'global', but with SOLVER.ACCUMULATION_STEPS "
            f"{steps} the sums over a step are known only after its last forward, when the first "
            "backward is done. Set SOFT_TEACHER.NORMALIZER_SCOPE to 'rank' or "
            "SOLVER.ACCUMULATION_STEPS to 1."
        )
    return scope


def normalize_globally(
    losses: dict[str, Tensor], normalizers: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Divide by a sum over all processes what was divided by this process' share of it.

    Process r of W comes with total_r / max(n_r, 1) and leaves with W total_r / max(n, 1), where
    n is the sum of all n_r. The mean over processes, which DDP takes of the gradients, is then
    sum(total_r) / max(n, 1): the loss of one process that has all the images.

    This is one collective call, on the normalizers' device and without waiting for it: all
    processes come here, with the same names, or none.

    Args:
        losses: name -> 0-d loss of this process.
        normalizers: name -> 0-d n_r, for those losses that have one.

    Returns:
        All the losses.
    """
    if comm.get_world_size() == 1 or not normalizers:
        return losses
    own = torch.stack(list(normalizers.values()))
    everywhere = own.clone()
    dist.all_reduce(everywhere)
    factors = comm.get_world_size() * own.clamp(min=1.0) / everywhere.clamp(min=1.0)
    changed = {k: losses[k] * x for k, x in zip(normalizers, factors, strict=True)}
    return {**losses, **changed}
