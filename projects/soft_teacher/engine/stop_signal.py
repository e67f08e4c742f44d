"""Signals that ask training to stop: noted at once, obeyed when all processes can."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from soft_teacher.data.worker_signals import STOP_SIGNALS


def exit_status(signal_number: int) -> int:
    """The status with which a program ends because of a signal, as shells report it."""
    return 128 + signal_number


class StopSignal:
    """Notes the first stop signal that this process gets; whatever comes later is ignored.

    Attributes:
        number: of the signal, 0 as long as there was none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._previous: dict[int, object] = {}
        self._owner = 0

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Note signals instead of ending by them, inside the block or until :meth:`release`."""
        # Python gives signals to the main thread alone.
        if threading.current_thread() is threading.main_thread():
            self._owner = os.getpid()
            self._previous = {x: signal.signal(x, self._handle) for x in STOP_SIGNALS}
        try:
            yield
        finally:
            self.release()

    def release(self) -> None:
        """Let signals do again what they did before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # A forked process inherits the handler until it has set its own.
        if os.getpid() != self._owner:
            return
        name = signal.Signals(number).name
        if self.number:
            _say(f"{name} ignored: training is stopping already; kill -9 ends it at once.")
        else:
            self.number = number
            _say(f"{name}: training will stop after this iteration or in an evaluation, all saved.")


class ForwardedSignal(StopSignal):
    """Hands stop signals on to the processes that this one has started."""

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        for process in multiprocessing.active_children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)


def _say(text: str) -> None:
    # A signal may interrupt a logger or a print, which cannot be entered again.
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())
