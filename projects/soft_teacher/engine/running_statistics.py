"""Running statistics: what forward changes before anybody has agreed to it."""

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn

from soft_teacher.engine.hidden_state import Numbers, read_numbers, restore_numbers


class RunningStatistics:
    """The running means and variances of a model's live batch norms, and its hidden numbers.

    Forward writes them, so a step that is skipped must put them back; and each process writes
    its own, so those of the norms are averaged before the teacher follows (frozen norms have
    none). Hidden numbers stay each process's own, as in Detectron2; the teacher has no use for
    them.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        norms = [
            m
            for m in model.modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
        ]
        self._tensors = [x for norm in norms for x in (norm.running_mean, norm.running_var)]
        # Equal on all processes, but forward counts on.
        self._counters = [norm.num_batches_tracked for norm in norms]
        self._before: list[Tensor] = []
        self._numbers_before: Numbers = {}

    def remember(self) -> None:
        """Keep the values of now."""
        self._before = [x.clone() for x in self._tensors + self._counters]
        self._numbers_before = read_numbers(self._model)

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what :meth:`remember` kept."""
        for tensor, before in zip(self._tensors + self._counters, self._before, strict=True):
            tensor.copy_(before)
        restore_numbers(self._model, self._numbers_before)

    @torch.no_grad()
    def average_over_processes(self) -> None:
        """Give all processes the mean of their statistics (one collective)."""
        if comm.get_world_size() == 1 or not self._tensors:
            return
        flat = torch.cat([x.flatten() for x in self._tensors])
        dist.all_reduce(flat)
        flat /= comm.get_world_size()
        for tensor, mean in zip(
            self._tensors, flat.split([x.numel() for x in self._tensors]), strict=True
        ):
            tensor.copy_(mean.view_as(tensor))
