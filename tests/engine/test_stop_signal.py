"""Stop signals: the first is noted, later ones change nothing, workers outlive all."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from torch.utils.data import DataLoader

from soft_teacher.data.worker_signals import STOP_SIGNALS, let_workers_outlive_stop_signals
from soft_teacher.engine.stop_signal import ForwardedSignal, StopSignal


def handlers():
    return [signal.getsignal(x) for x in STOP_SIGNALS]


def test_the_first_signal_is_noted_and_the_next_are_ignored_aloud(capfd):
    before = handlers()
    noted = StopSignal()
    with noted.caught():
        assert noted.number == 0
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
            assert noted.number == signal.SIGUSR2
    assert handlers() == before
    lines = capfd.readouterr().err.splitlines()
    assert [x.split(":")[0] for x in lines] == ["SIGUSR2", "SIGTERM ignored", "SIGINT ignored"]


def test_released_signals_do_again_what_they_did(capfd):
    # Not what they do by themselves: in a shell's background job SIGINT does nothing.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    noted = StopSignal()
    try:
        with noted.caught(), pytest.raises(KeyboardInterrupt):
            noted.release()
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    finally:
        signal.signal(signal.SIGINT, before)
    assert noted.number == 0


def sleep_for_ever(started):
    started.set()
    time.sleep(600)


def test_a_forwarded_signal_reaches_started_processes():
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=sleep_for_ever, args=(started,))
    # Started first, it does with signals what is usual.
    process.start()
    assert started.wait(30)
    forwarded = ForwardedSignal()
    with forwarded.caught():
        os.kill(os.getpid(), signal.SIGTERM)
    process.join(30)
    assert process.exitcode == -signal.SIGTERM
    assert forwarded.number == signal.SIGTERM


class Slow:
    """Items that are the worker's process id."""

    def __len__(self):
        return 100

    def __getitem__(self, index):
        time.sleep(0.02)
        return os.getpid()


@pytest.fixture
def batches():
    loader = DataLoader(Slow(), num_workers=1, batch_size=None)
    let_workers_outlive_stop_signals(loader)
    return iter(loader)


def test_workers_outlive_stop_signals_from_others_and_obey_their_own_process(batches):
    worker = next(batches)
    # A third process, so that the worker is not told by the one that it works for.
    kill = "import os, signal; [os.kill({}, x) for x in ({})]"
    numbers = ", ".join(str(int(x)) for x in STOP_SIGNALS)
    subprocess.run([sys.executable, "-c", kill.format(worker, numbers)], check=True, timeout=60)
    assert [next(batches) for _ in range(10)] == [worker] * 10
    os.kill(worker, signal.SIGTERM)
    end = time.monotonic() + 30
    while os.waitid(os.P_PID, worker, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        assert time.monotonic() < end, "The worker does not end when it is told to."
        time.sleep(0.01)


def test_threads_that_libraries_start_in_a_worker_do_not_take_its_stop_signals():
    masks = multiprocessing.SimpleQueue()

    def note_mask():
        masks.put(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    # What a library may do in every forked process, before any code of ours runs in it.
    forked = {"start": None}
    os.register_at_fork(after_in_child=lambda: forked["start"] and forked["start"]())
    forked["start"] = threading.Thread(target=note_mask, daemon=True).start
    loader = DataLoader(Slow(), num_workers=1, batch_size=None)
    let_workers_outlive_stop_signals(loader)
    next(iter(loader))
    forked["start"] = None
    assert signal.SIGTERM in masks.get()


def test_the_process_that_starts_workers_still_takes_stop_signals(batches):
    next(batches)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(STOP_SIGNALS)
