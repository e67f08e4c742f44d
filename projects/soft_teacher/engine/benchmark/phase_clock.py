"""A clock that splits the time of a step among named phases."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

TOTAL = "total"
OTHER = "other"


class PhaseClock:
    """Measures steps; the time of an inner phase does not count for the phase around it.

    On CUDA the boundaries between phases are events in the device's queue, so that the host does
    not wait for the device within a step because of the measurement.
    """

    def __init__(self, device: torch.device):
        self._on_cuda = device.type == "cuda"
        self._open: list[str] = [OTHER]
        self._marks: list[tuple[str, Any]] = []

    def measure(self, step: Callable[[], None]) -> dict[str, float]:
        """Run a step.

        Returns:
            Seconds: `TOTAL`, each phase that occurred, and `OTHER`, the rest.
        """
        self._open, self._marks = [OTHER], []
        self._synchronize()
        start = time.perf_counter()
        step()
        assert self._open == [OTHER], f"unfinished phases: {self._open[1:]}"
        self._mark()
        self._synchronize()
        total = time.perf_counter() - start
        phases = self._seconds_by_phase()
        return {TOTAL: total, **phases, OTHER: total - sum(phases.values())}

    def begin(self, phase: str) -> None:
        """What follows belongs to this phase, until its :meth:`end` or an inner phase."""
        self._open.append(phase)
        self._mark()

    def end(self) -> None:
        """What follows belongs to the phase around the current one."""
        self._open.pop()
        self._mark()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The body belongs to the phase."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def attach(self, owner: object, method: str, phase: str) -> None:
        """Let all calls of a method of this one object belong to the phase."""
        function = getattr(owner, method)

        def timed(*args, **kwargs):
            with self.phase(phase):
                return function(*args, **kwargs)

        setattr(owner, method, timed)

    def _mark(self) -> None:
        if self._on_cuda:
            stamp = torch.cuda.Event(enable_timing=True)
            stamp.record()
        else:
            stamp = time.perf_counter()
        self._marks.append((self._open[-1], stamp))

    def _synchronize(self) -> None:
        if self._on_cuda:
            torch.cuda.synchronize()

    def _seconds_by_phase(self) -> dict[str, float]:
        """What the phases took, without `OTHER`."""
        seconds: dict[str, float] = {}
        for (phase, begin), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            elapsed = begin.elapsed_time(end) / 1000 if self._on_cuda else end - begin
            seconds[phase] = seconds.get(phase, 0.0) + elapsed
        seconds.pop(OTHER, None)
        return seconds
