"""train_net.py started by torchrun, with two processes on the CPU."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tiny_training import NARROW, assert_same, checkpoint, write_config

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 600
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


class Training:
    """A training of two processes; what it prints goes to a file."""

    def __init__(self, folder: Path, output: Path, starter: list[str], *options: str):
        command = [sys.executable, *starter, str(ROOT / "train_net.py"), "--config-file"]
        command += [str(folder / "config.yaml"), "--resume", *options, "OUTPUT_DIR", str(output)]
        path = os.pathsep.join((str(ROOT / "projects"), os.environ.get("PYTHONPATH", "")))
        self._console = output.with_name(f"{output.name}_console.txt")
        with self._console.open("a") as console:
            self.process = subprocess.Popen(
                command,
                stdout=console,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            )

    def ending(self) -> tuple[int, str]:
        """Status and console; torchrun that is killed takes its processes with it."""
        try:
            self.process.wait(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            self.process.wait(timeout=TIMEOUT)
            raise
        return self.process.returncode, self._console.read_text()

    def ranks(self) -> list[int]:
        """The two training processes, by age."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [
            int(x) for x in children if "train_net.py" in Path(f"/proc/{x}/cmdline").read_text()
        ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torchrun")
    write_config(
        folder,
        **NARROW,
        DATASETS__TEST=(),
        VIS_PERIOD=0,
        TEST__EVAL_PERIOD=0,
        DATALOADER__NUM_WORKERS=1,
        SOLVER__MAX_ITER=24,
        SOLVER__CHECKPOINT_PERIOD=6,
        SOLVER__CHECKPOINTS_TO_KEEP=100,
    )
    return folder


@pytest.fixture(scope="module")
def final(folder):
    """The last checkpoint of a training by torchrun that nothing happened to."""
    status, console = Training(folder, folder / "whole", TORCHRUN).ending()
    assert status == 0, console
    return checkpoint(folder / "whole")


def wait_for_first_checkpoint(output: Path) -> None:
    end = time.monotonic() + TIMEOUT
    while not (output / "model_0000005.pth").exists():
        assert time.monotonic() < end, f"no checkpoint in {output}"
        time.sleep(0.01)


def test_torchrun_gives_the_same_weights_as_num_gpus(folder, final, tmp_path):
    status, console = Training(folder, tmp_path / "out", [], "--num-gpus", "2").ending()
    assert status == 0, console
    assert_same(checkpoint(tmp_path / "out"), final)
    assert len(final["random_states"]) == 2


def test_another_number_of_processes_than_torchrun_started_is_an_error(folder, tmp_path):
    status, console = Training(folder, tmp_path / "out", TORCHRUN, "--num-gpus", "3").ending()
    assert status == 1
    assert "ValueError: --num-gpus is 3, but torchrun has started the processes already" in console


@pytest.mark.slow
def test_a_signal_to_torchrun_stops_the_processes_with_a_checkpoint(folder, final, tmp_path):
    output = tmp_path / "out"
    training = Training(folder, output, TORCHRUN)
    wait_for_first_checkpoint(output)
    training.process.terminate()
    status, console = training.ending()
    assert status != 0
    assert "Stopped by SIGTERM; --resume goes on from here" in console
    assert not (output / "model_final.pth").exists()

    status, console = Training(folder, output, TORCHRUN).ending()
    assert status == 0, console
    assert_same(checkpoint(output), final)


@pytest.mark.slow
def test_torchrun_starts_processes_again_where_one_of_them_was_stopped(folder, final, tmp_path):
    output = tmp_path / "out"
    training = Training(folder, output, [*TORCHRUN, "--max-restarts", "1"])
    wait_for_first_checkpoint(output)
    os.kill(training.ranks()[-1], signal.SIGUSR2)
    status, console = training.ending()
    assert status == 0, console
    assert "Stopped by SIGUSR2" in console
    # Whichever of the two torchrun saw first.
    assert re.search(rf"exitcode: {128 + signal.SIGUSR2}\b", console), console
    assert_same(checkpoint(output), final)
