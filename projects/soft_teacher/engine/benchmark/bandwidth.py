"""How fast the teacher's average and the optimizer go through memory, beside plain copying."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from soft_teacher.engine.benchmark.phase_clock import PhaseClock

COPY = "copy"
PASSES = {COPY: 2, "ema": 3, "optimizer": 5}
"""How many numbers each must read and write for every one that trains. Copying: 1 and 1. The
average: student and teacher, and the teacher. SGD: weight, gradient and momentum, and the first and
the last of these."""


class CopyContender:
    """Copies all weights that train, as fast as the machine moves memory for one operation.

    Args:
        model: whose weights.
        clock: measures the copying.
    """

    def __init__(self, model: nn.Module, clock: PhaseClock) -> None:
        self._clock = clock
        self._sources = [p.detach() for p in model.parameters() if p.requires_grad]
        self.copies = [torch.empty_like(x) for x in self._sources]

    @property
    def num_bytes(self) -> int:
        """Size of the weights that train."""
        return sum(x.numel() * x.element_size() for x in self._sources)

    def run(self) -> dict[str, float]:
        """Copy once and return the seconds."""
        return self._clock.measure(lambda: torch._foreach_copy_(self.copies, self._sources))


@dataclass(frozen=True)
class Traffic:
    """What goes through memory.

    Attributes:
        num_bytes: size of the weights that train.
        seconds: of each of PASSES.
    """

    num_bytes: int
    seconds: Mapping[str, float]

    def describe(self) -> dict[str, dict[str, float]]:
        """Seconds, bytes and bytes a second of each, by name."""
        moved = {name: PASSES[name] * self.num_bytes for name in self.seconds}
        return {
            name: {"seconds": s, "bytes": moved[name], "bytes_per_second": moved[name] / s}
            for name, s in self.seconds.items()
        }
