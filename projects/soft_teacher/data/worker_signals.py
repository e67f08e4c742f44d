"""Stop signals in the worker processes of a data loader."""

import os
import signal
import threading
from multiprocessing.context import ForkContext, ForkProcess

from torch.utils.data import DataLoader

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""What asks training to stop: Ctrl-C, the polite kill, and a cluster's preemption."""


def let_workers_outlive_stop_signals(loader: DataLoader) -> None:
    """Let a loader's workers ignore stop signals, which often go to whole groups of processes.

    The iteration that is under way needs its batches. A worker ends when the process that it
    works for ends, or tells it to: torch and Python do that with SIGTERM and would wait for ever
    for one that ignores it.

    Args:
        loader: is changed; its workers must not have been started.
    """
    if loader.num_workers > 0:
        loader.multiprocessing_context = _WorkerContext()


class _Worker(ForkProcess):
    def start(self) -> None:
        # A mask goes on to what is forked and to all its threads. Blocked later, in the worker's
        # main thread alone, a signal would find another thread, e.g. of torch's pool, to end all.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def run(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        threading.Thread(target=_end_when_the_parent_says_so, daemon=True).start()
        super().run()


class _WorkerContext(ForkContext):
    Process = _Worker


def _end_when_the_parent_says_so() -> None:
    # Blocked, a signal waits to be asked for, with its sender.
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        continue
    os._exit(0)
