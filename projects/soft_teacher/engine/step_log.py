"""What is logged of a step: scalars of all its forward passes, on all processes, as one."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor


class MicroStep(NamedTuple):
    """What is left of one forward and backward.

    Attributes:
        losses, statistics: 0-d, without graph.
        num_images: labeled and unlabeled images.
        data_time: seconds spent on waiting for them.
    """

    losses: dict[str, Tensor]
    statistics: dict[str, Tensor]
    num_images: int
    data_time: float

    def scalars(self) -> dict[str, float]:
        """Losses and statistics as numbers, in one transfer to the host."""
        tensors = {**self.losses, **self.statistics}
        numbers = torch.stack([x.float() for x in tensors.values()]).tolist()
        return dict(zip(tensors, numbers, strict=True))


def log_step(micro_steps: list[MicroStep], common: dict[str, float], seconds: float) -> None:
    """Put a step into the log of the first process; all processes call this.

    Losses and statistics are means over the micro-steps of all processes. Rates add up, data time
    is that of the process that waited longest.

    Args:
        micro_steps: of this process.
        common: further scalars, which are the same on all processes.
        seconds: how long the step took.
    """
    rows = [x.scalars() for x in micro_steps]
    data_time = sum(x.data_time for x in micro_steps)
    rate = sum(x.num_images for x in micro_steps) / seconds
    gathered = comm.gather((rows, data_time, rate))
    if not comm.is_main_process():
        return
    all_rows, data_times, rates = zip(*gathered, strict=True)
    means = mean_of_known([row for rows in all_rows for row in rows])
    storage = get_event_storage()
    storage.put_scalar("data_time", max(data_times))
    storage.put_scalar("images_per_second", sum(rates))
    storage.put_scalar("total_loss", sum(means[k] for k in micro_steps[0].losses))
    storage.put_scalars(**means, **common)


def mean_of_known(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of each scalar over those rows in which it is finite.

    A mean over nothing (say, the variance when there was no pseudo box) is not finite; a scalar
    that no row knows is left out.
    """
    known: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if math.isfinite(value):
                known.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in known.items()}
