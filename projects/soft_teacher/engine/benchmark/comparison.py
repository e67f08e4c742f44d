"""Soft Teacher's step and stock Detectron2's, measured in turn under the same conditions."""

import resource
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from detectron2.config import CfgNode

from soft_teacher.engine.benchmark.bandwidth import COPY, PASSES, CopyContender, Traffic
from soft_teacher.engine.benchmark.building import build_soft_teacher, build_stock_contenders
from soft_teacher.engine.benchmark.contenders import PHASES
from soft_teacher.engine.benchmark.phase_clock import TOTAL
from soft_teacher.engine.benchmark.synthetic import BatchShape

CONTENDERS = ("soft_teacher", "supervised", "inference")

Steps = list[dict[str, float]]
"""Seconds of each measured step, by phase; "total" is the whole step."""


class Contender(Protocol):
    """Something whose steps can be measured."""

    def run(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class Measurement:
    """What was measured.

    Attributes:
        steps: by name of the contender (see `CONTENDERS`) and COPY, one entry per round.
        pseudo_boxes: pseudo boxes per image that taught "rpn", "cls" and "reg".
        peak_memory: bytes that Soft Teacher needed, before there was another model: what was
            allocated on a GPU, on the CPU the resident memory of the whole process.
        trained_bytes: size of the weights that train.
    """

    steps: dict[str, Steps]
    pseudo_boxes: dict[str, float]
    peak_memory: int
    trained_bytes: int

    @property
    def overhead_ratio(self) -> dict[str, Any]:
        """Soft Teacher's step over stock Detectron2's training and inference on like work."""
        soft_teacher, supervised, inference = (
            [step[TOTAL] for step in self.steps[name]] for name in CONTENDERS
        )
        return spread(
            [t / (s + i) for t, s, i in zip(soft_teacher, supervised, inference, strict=True)]
        )

    @property
    def traffic(self) -> Traffic:
        """The average's and the optimizer's way through memory, beside copying."""
        medians = {**self.medians("soft_teacher"), COPY: self.medians(COPY)[TOTAL]}
        return Traffic(self.trained_bytes, {name: medians[name] for name in PASSES})

    def medians(self, contender: str) -> dict[str, float]:
        """Median seconds of each phase of a contender, "total" first."""
        return median_by_phase(self.steps[contender])


def measure(
    cfg: CfgNode, shape: BatchShape, num_rounds: int, num_warmup: int, stock_as_is: bool = False
) -> Measurement:
    """Measure Soft Teacher's step and stock Detectron2's in turn.

    Args:
        cfg: the config; weights are random whatever it says, and drawn from SEED.
        shape: what a step works on.
        num_rounds: measured steps of each contender, 2 or more.
        num_warmup: steps of each before.
        stock_as_is: stock Detectron2 as it comes, see `build_stock_contenders`.

    Raises:
        FloatingPointError: a measured step was skipped for a non-finite value.
    """
    soft_teacher, batch = build_soft_teacher(cfg, shape)
    warm_up(soft_teacher, num_warmup)
    memory = peak_memory(soft_teacher.student.device)
    supervised, inference = build_stock_contenders(soft_teacher, batch, stock_as_is)
    warm_up(supervised, num_warmup)
    warm_up(inference, num_warmup)
    copy = CopyContender(soft_teacher.student, soft_teacher.clock)
    warm_up(copy, 1)
    contenders = dict(zip(CONTENDERS, (soft_teacher, supervised, inference), strict=True))
    num_skipped = soft_teacher.step.num_skipped
    steps = run_rounds({**contenders, COPY: copy}, num_rounds)
    if soft_teacher.step.num_skipped > num_skipped:
        raise FloatingPointError(
            "Measured steps were skipped for non-finite values, so the times mean nothing; more "
            "warm-up steps let the gradient scale of mixed precision settle."
        )
    pseudo_boxes = soft_teacher.pseudo_boxes
    assert all(round(x, 3) == shape.num_boxes for x in pseudo_boxes.values()), pseudo_boxes
    return Measurement(steps, pseudo_boxes, memory, copy.num_bytes)


def warm_up(contender: Contender, num_steps: int) -> None:
    """Run steps that do not count."""
    for _ in range(num_steps):
        contender.run()


def run_rounds(contenders: Mapping[str, Contender], num_rounds: int) -> dict[str, Steps]:
    """Run one step of each contender in every round, each round beginning with another one."""
    names = list(contenders)
    steps: dict[str, Steps] = {name: [] for name in names}
    for i in range(num_rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            steps[name].append(contenders[name].run())
    return steps


def median_by_phase(steps: Steps) -> dict[str, float]:
    """Median seconds of each phase over steps, in the order of `PHASES`."""
    return {
        phase: statistics.median(step[phase] for step in steps)
        for phase in PHASES
        if phase in steps[0]
    }


def spread(values: list[float]) -> dict[str, Any]:
    """Median, quartiles, extremes and all of two or more values."""
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return {
        "median": median,
        "quartiles": [lower, upper],
        "min": min(values),
        "max": max(values),
        "all": values,
    }


def peak_memory(device: torch.device) -> int:
    """Largest memory so far in bytes, see :class:`Measurement`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
