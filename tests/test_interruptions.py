"""Trainings that are killed, stopped or lack an image go on as if nothing had happened."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.engine import default_argument_parser

import train_net
from forked_trainings import ROOT, ForkedTrainings
from soft_teacher.safe_loading import is_complete
from tiny_training import NARROW, assert_same, checkpoint, write_config

STOP_SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2]
TIMEOUT = 300
# What is stopped in the tests saves so often, and keeps it all.
PERIOD = 6
FIRST_PLANNED = f"model_{PERIOD - 1:07d}.pth"
LONG = ["SOLVER.CHECKPOINT_PERIOD", PERIOD, "SOLVER.CHECKPOINTS_TO_KEEP", 1000]
ENDLESS = [*LONG, "SOLVER.MAX_ITER", 10000]


class Bench:
    """A folder with data and a config, the final checkpoint of a whole training, and a server."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = write_config(
            folder,
            **NARROW,
            DATASETS__TEST=(),
            VIS_PERIOD=0,
            TEST__EVAL_PERIOD=0,
            SOLVER__MAX_ITER=12,
            SOLVER__CHECKPOINTS_TO_KEEP=3,
        )
        self.trainings = ForkedTrainings()
        self.console = folder / "console.txt"
        start = time.monotonic()
        self.start(folder / "whole")
        assert self.trainings.wait() == 0, self.console.read_text()
        self.seconds = time.monotonic() - start
        self.final = checkpoint(folder / "whole")

    def start(self, output: Path, *options, die=None) -> int:
        arguments = ["--config-file", self.config, "--resume", *options, "OUTPUT_DIR", output]
        return self.trainings.start(arguments, self.console, die)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("interruptions"))
    yield bench
    bench.trainings.close()


def wait_for(path: Path) -> None:
    """Wait until a file is there."""
    end = time.monotonic() + TIMEOUT
    while not path.exists():
        assert time.monotonic() < end, f"{path} does not appear"
        time.sleep(0.01)


def checkpoints(output: Path) -> list[Path]:
    return sorted(output.glob("model_*.pth"))


def assert_sound(output: Path) -> None:
    """Whatever has the name of a checkpoint is complete, and so is what is called the last."""
    if not output.exists():
        return
    for path in checkpoints(output):
        assert is_complete(str(path)), path
    last = output / "last_checkpoint"
    if last.exists():
        assert (output / last.read_text()).is_file()


def random_death(bench: Bench, rng: random.Random, where: str) -> tuple[str, int]:
    """A moment inside the writing of one of the seven files of a training, or of their names."""
    if where == "bytes":
        return where, rng.randrange(7 * (bench.folder / "whole/model_final.pth").stat().st_size)
    return where, rng.randint(1, 14)


def test_a_training_killed_at_any_moment_ends_with_the_same_weights(bench, request, tmp_path):
    rng = random.Random(20)
    output = tmp_path / "killed"
    num_killed = 0
    kinds = ["bytes", "time", "before_rename", "bytes", "after_rename"]
    while num_killed < request.config.getoption("--kills"):
        kind = kinds[num_killed % len(kinds)]
        if kind == "time":
            pid = bench.start(output)
            time.sleep(rng.uniform(0, bench.seconds))
            # It may have come to its end before.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        else:
            bench.start(output, die=random_death(bench, rng, kind))
        status = bench.trainings.wait()
        assert status in (0, -signal.SIGKILL), bench.console.read_text()
        assert_sound(output)
        if status == 0:
            # It got to the end before its time had come: look at the result and start anew.
            assert_same(checkpoint(output), bench.final)
            output = tmp_path / f"killed_{num_killed}_{rng.random()}"
        else:
            num_killed += 1
    bench.start(output)
    assert bench.trainings.wait() == 0, bench.console.read_text()
    assert_same(checkpoint(output), bench.final)
    assert not list(output.glob("*.tmp"))
    # As many as are to be kept, whoever wrote them.
    names = [x.name for x in checkpoints(output)]
    assert names == [*(f"model_{i:07d}.pth" for i in (7, 9, 11)), "model_final.pth"]


@pytest.fixture
def one_thread():
    """As many as the trainings have that the results are compared with."""
    torch.set_num_threads(1)


@pytest.mark.usefixtures("one_thread")
def test_a_signal_while_a_checkpoint_is_saved_does_no_harm(bench, tmp_path, monkeypatch, capfd):
    def save_interrupted(*args):
        for number in (signal.SIGUSR2, signal.SIGTERM):
            os.kill(os.getpid(), number)
        save(*args)

    save = torch.save
    monkeypatch.setattr(torch, "save", save_interrupted)
    arguments = ["--config-file", str(bench.config), "OUTPUT_DIR", str(tmp_path)]
    torch.manual_seed(0)
    handlers = [signal.getsignal(x) for x in STOP_SIGNALS]
    with pytest.raises(SystemExit) as end:
        train_net.main(default_argument_parser().parse_args(arguments))
    assert end.value.code == 128 + signal.SIGUSR2
    assert [signal.getsignal(x) for x in STOP_SIGNALS] == handlers
    # The one that was being saved when the signals came, and that of the stop after the next step.
    assert [x.name for x in checkpoints(tmp_path)] == ["model_0000001.pth", "model_0000002.pth"]
    assert_sound(tmp_path)
    assert "SIGTERM ignored" in capfd.readouterr().err

    bench.start(tmp_path)
    assert bench.trainings.wait() == 0, bench.console.read_text()
    assert_same(checkpoint(tmp_path)["model"], bench.final["model"])


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda x: x.name)
def test_a_signal_to_all_processes_of_a_training_stops_it_with_a_checkpoint(
    bench, tmp_path, number
):
    """Workers get it as well, as from a terminal or a cluster."""
    output = tmp_path / "stopped"
    options = [*ENDLESS, "DATALOADER.NUM_WORKERS", 1]
    pid = bench.start(output, *options)
    wait_for(output / FIRST_PLANNED)
    os.killpg(pid, number)
    assert bench.trainings.wait() == 128 + number
    console = bench.console.read_text()
    assert f"{number.name}: training will stop" in console
    assert "Traceback" not in console
    assert_one_unplanned_checkpoint(output)
    assert_goes_on_exactly(bench, output, options)


def assert_one_unplanned_checkpoint(output: Path) -> None:
    """Beside those of the schedule there is that of the stop, unless it came just after one."""
    last = (output / "last_checkpoint").read_text()
    planned = {f"model_{i:07d}.pth" for i in range(PERIOD - 1, iteration_of(last), PERIOD)}
    assert {x.name for x in checkpoints(output)} == {*planned, last}


def iteration_of(name: str) -> int:
    return int(re.fullmatch(r"model_(\d{7})\.pth", name)[1])


def assert_goes_on_exactly(bench: Bench, stopped: Path, options: list) -> None:
    """The training, resumed, ends with the weights of one that was never stopped."""
    max_iter = iteration_of((stopped / "last_checkpoint").read_text()) + 3
    whole = stopped.with_name("never_stopped")
    for output in (stopped, whole):
        bench.start(output, *options, "SOLVER.MAX_ITER", max_iter)
        assert bench.trainings.wait() == 0, bench.console.read_text()
    assert_same(checkpoint(stopped), checkpoint(whole))


class TwoProcesses:
    """train_net.py with --resume as a user types it."""

    def __init__(self, bench: Bench, output: Path):
        command = [sys.executable, ROOT / "train_net.py", "--config-file", bench.config]
        command += ["--num-gpus", 2, "--resume", *LONG, "SOLVER.MAX_ITER", 24]
        command += ["DATALOADER.NUM_WORKERS", 1, "OUTPUT_DIR", output]
        path = os.pathsep.join((str(ROOT / "projects"), os.environ.get("PYTHONPATH", "")))
        self._console = output.with_name(f"{output.name}_console.txt")
        with self._console.open("w") as console:
            self.process = subprocess.Popen(
                [str(x) for x in command],
                stdout=console,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )

    def ending(self) -> tuple[int, str]:
        """Status and console; a training that hangs is killed, with its processes."""
        try:
            self.process.wait(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            for pid in [*self.ranks(), self.process.pid]:
                os.kill(pid, signal.SIGKILL)
            raise
        return self.process.returncode, self._console.read_text()

    def ranks(self) -> list[int]:
        """The processes that torch's launcher has started, by age."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(x) for x in children if "spawn_main" in Path(f"/proc/{x}/cmdline").read_text()]


@pytest.fixture(scope="module")
def final_of_two(bench):
    output = bench.folder / "whole_of_two"
    status, console = TwoProcesses(bench, output).ending()
    assert status == 0, console
    return checkpoint(output)


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_iteration(
    bench, final_of_two, tmp_path
):
    output = tmp_path / "out"
    training = TwoProcesses(bench, output)
    wait_for(output / FIRST_PLANNED)
    os.kill(training.ranks()[-1], signal.SIGUSR2)
    status, console = training.ending()
    assert status == 128 + signal.SIGUSR2, console
    assert "Traceback" not in console
    assert_one_unplanned_checkpoint(output)

    status, console = TwoProcesses(bench, output).ending()
    assert status == 0, console
    assert_same(checkpoint(output), final_of_two)


@pytest.mark.slow
def test_a_signal_to_the_launcher_reaches_the_processes(bench, tmp_path):
    output = tmp_path / "out"
    training = TwoProcesses(bench, output)
    wait_for(output / FIRST_PLANNED)
    training.process.terminate()
    status, console = training.ending()
    assert status == 128 + signal.SIGTERM, console
    assert "Traceback" not in console
    assert_one_unplanned_checkpoint(output)


@pytest.mark.slow
def test_an_image_that_one_of_two_processes_cannot_read_stops_both_and_costs_nothing(
    bench, final_of_two, tmp_path
):
    output = tmp_path / "out"
    training = TwoProcesses(bench, output)
    with broken_image(bench, output) as image:
        status, console = training.ending()
    assert status == 1, console
    for log in ("log.txt", "log.txt.rank1"):
        assert str(image) in (output / log).read_text().split("Starting training")[1], log
    assert_one_unplanned_checkpoint(output)

    status, console = TwoProcesses(bench, output).ending()
    assert status == 0, console
    assert_same(checkpoint(output), final_of_two)


def test_a_single_process_saves_what_is_finished_before_it_stops_for_an_image(bench, tmp_path):
    output = tmp_path / "out"
    bench.start(output, *ENDLESS)
    with broken_image(bench, output) as image:
        assert bench.trainings.wait() == 1
    assert f"{image}" in bench.console.read_text().splitlines()[-1]
    assert_one_unplanned_checkpoint(output)
    assert_goes_on_exactly(bench, output, ENDLESS)


@contextlib.contextmanager
def broken_image(bench: Bench, output: Path) -> Iterator[Path]:
    """Damage a labeled image while a training is under way; mend it at the end."""
    wait_for(output / FIRST_PLANNED)
    image = bench.folder / "labeled_2.png"
    content = image.read_bytes()
    image.write_bytes(content[:100])
    try:
        yield image
    finally:
        image.write_bytes(content)
