"""Stop signals in the worker processes of a data loader."""

import os
import signal
import threading

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
"""What asks training to stop: Ctrl-C, the polite kill, and a cluster's preemption."""


def outlive_stop_signals(worker_id: int = 0) -> None:
    """Let a worker ignore stop signals, which often go to whole groups of processes.

    The iteration that is under way needs its batches. The worker ends when the process that it
    works for ends, or tells it to: torch and Python do that with SIGTERM and would wait for ever
    for one that ignores it.

    Args:
        worker_id: unused; torch gives it to a `worker_init_fn`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    # Blocked, a signal waits to be asked for, with its sender.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_when_the_parent_says_so, daemon=True).start()


def _end_when_the_parent_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        continue
    os._exit(0)
