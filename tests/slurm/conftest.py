"""Trainings as jobs of the tests' own SLURM, which `make test-slurm` starts; see mini_slurm.py."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from soft_teacher.data.digits import write_dataset
from tiny_training import NARROW, checkpoint, write_config

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 600
FIRST_CHECKPOINT = "model_0000005.pth"
END_STATES = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL")
NO_SLURM = "not run: `make test-slurm` starts a SLURM for these tests"


def pytest_collection_modifyitems(items):
    # Never on a SLURM that is there for other purposes.
    if "MINI_SLURM" not in os.environ:
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.skip(reason=NO_SLURM))


class Slurm:
    """Calls of SLURM's commands, and what is waited for."""

    def call(self, *command: object) -> subprocess.CompletedProcess:
        texts = [str(x) for x in command]
        return subprocess.run(texts, capture_output=True, text=True, check=True, timeout=TIMEOUT)

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < end, f"{what} does not come"
            time.sleep(0.1)

    def wait_for_signal(self, frozen: list[int], number: signal.Signals) -> None:
        """Wait until all of these frozen processes have got a signal.

        SLURM wakes processes before some signals: then they have got it, or are about to.
        """

        def reached(pid: int) -> bool:
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                return True
            pending = int(re.search(r"ShdPnd:\s*(\w+)", status)[1], 16)
            return "(stopped)" not in status or bool(pending >> (number - 1) & 1)

        self.wait_until(lambda: all(reached(x) for x in frozen), number.name)

    @contextlib.contextmanager
    def preempting_by_sigterm(self) -> Iterator[None]:
        """Let preempted jobs get SIGTERM instead of the signal that they asked for."""
        config = Path(os.environ["SLURM_CONF"])
        text = config.read_text()
        line = "SlurmctldParameters=preempt_send_user_signal\n"
        assert line in text
        try:
            config.write_text(text.replace(line, ""))
            self.call("scontrol", "reconfigure")
            yield
        finally:
            config.write_text(text)
            self.call("scontrol", "reconfigure")


class TrainingOnSlurm:
    """A training of 120 iterations on two nodes, with one CPU process each.

    Its processes can be frozen, so that nothing that happens to it depends on how fast it is.
    """

    def __init__(self, slurm: Slurm, folder: Path, output: Path):
        self.slurm = slurm
        self.folder = folder
        self.output = output
        self.job = ""

    def plain_command(self) -> list[str]:
        """train_net.py without submitit."""
        command = [sys.executable, ROOT / "train_net.py", "--config-file"]
        return [str(x) for x in [*command, self.folder / "config.yaml", "OUTPUT_DIR", self.output]]

    def submit(self, *options: object, output: Path | None = None) -> subprocess.CompletedProcess:
        """Call tools/slurm_train.py as a user does."""
        command = [sys.executable, ROOT / "tools/slurm_train.py"]
        command += ["--config-file", self.folder / "config.yaml", "--job-dir", self.folder / "jobs"]
        command += ["--nodes", 2, "--gpus-per-node", 0, *options]
        command += ["OUTPUT_DIR", output or self.output]
        texts = [str(x) for x in command]
        result = subprocess.run(texts, capture_output=True, text=True, timeout=TIMEOUT)
        jobs = re.findall(r"Submitted job (\w+),", result.stdout)
        self.job = jobs[0] if jobs else ""
        return result

    def start(self, *options: object, output: Path | None = None) -> None:
        result = self.submit(*options, output=output)
        assert result.returncode == 0, result.stdout + result.stderr

    def facts(self) -> dict[str, str]:
        """What the controller says about the job."""
        shown = self.slurm.call("scontrol", "--oneliner", "show", "job", self.job).stdout
        return dict(re.findall(r"(\S+?)=(\S+)", shown))

    def come_to_the_time_limit(self, frozen: list[int]) -> None:
        """Let the time that SLURM gives the job end soon; its next run gets ten minutes."""
        hours, minutes, _ = self.facts()["RunTime"].split(":")
        for limit in (60 * int(hours) + int(minutes) + 2, 10):
            self.slurm.call("scontrol", "update", f"JobId={self.job}", f"TimeLimit={limit}")
            self.slurm.wait_for_signal(frozen, signal.SIGUSR2)

    def wait_for_end(self) -> str:
        """Wait until the job ends for good; its state."""
        self.slurm.wait_until(
            lambda: self.facts()["JobState"] in END_STATES, f"The end of job {self.job}"
        )
        return self.facts()["JobState"]

    def complete(self) -> dict:
        """Wait for the end, which must be a good one; the final checkpoint."""
        assert self.wait_for_end() == "COMPLETED", self.logs()
        return checkpoint(self.output)

    @property
    def log_files(self) -> list[Path]:
        return [self.folder / "jobs" / f"{self.job}_{i}_log.out" for i in range(2)]

    def logs(self) -> str:
        """All that the two processes printed, run after run."""
        return "".join(x.read_text(errors="replace") for x in self.log_files if x.exists())

    @contextlib.contextmanager
    def frozen(self) -> Iterator[list[int]]:
        """Hold both processes up after their first checkpoint; their ids, by rank."""
        pids: list[int] = []

        def both_run() -> bool:
            pids[:] = self._ranks()
            return len(pids) == 2

        self.slurm.wait_until(both_run, f"The start of job {self.job}")
        first = self.output / FIRST_CHECKPOINT
        self.slurm.wait_until(first.exists, f"The first checkpoint of job {self.job}")
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        assert not (self.output / "model_final.pth").exists()
        try:
            yield pids
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def _ranks(self) -> list[int]:
        found = {}
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                command = (process / "cmdline").read_bytes().split(b"\0")
                variables = (process / "environ").read_bytes().split(b"\0")
                if (
                    b"submitit.core._submit" in command
                    and b"srun" not in command[0]
                    and f"SLURM_JOB_ID={self.job}".encode() in variables
                ):
                    rank = next(x for x in variables if x.startswith(b"SLURM_PROCID="))
                    found[rank] = int(process.name)
        return [pid for _, pid in sorted(found.items())]


@pytest.fixture(scope="session")
def slurm() -> Slurm:
    return Slurm()


@pytest.fixture(scope="session")
def slurm_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("slurm")
    write_config(
        folder,
        **NARROW,
        DATASETS__TEST=(),
        VIS_PERIOD=0,
        TEST__EVAL_PERIOD=0,
        DATALOADER__NUM_WORKERS=1,
        SOLVER__MAX_ITER=120,
        SOLVER__CHECKPOINT_PERIOD=6,
        SOLVER__CHECKPOINTS_TO_KEEP=100,
    )
    return folder


@pytest.fixture
def training(slurm, slurm_folder, tmp_path):
    training = TrainingOnSlurm(slurm, slurm_folder, tmp_path / "out")
    yield training
    if training.job:
        slurm.call("scancel", training.job)


@pytest.fixture
def demo_training(slurm, tmp_path):
    """The demo's Soft Teacher on a few of its scenes, for a few steps."""
    counts = {"labeled": 4, "unlabeled": 8, "val": 4}
    images = tmp_path / "digits"
    write_dataset(images, counts, seed=0)
    changes = {
        "DATASETS": {
            "CUSTOM": [
                [f"digits_{x}", f"{images}/annotations/{y}.json", f"{images}/images"]
                for x, y in [("labeled", "labeled"), ("unlabeled", "unlabeled"), ("val", "val")]
            ]
        },
        "MODEL": {"WEIGHTS": ""},
        "SOLVER": {"MAX_ITER": 4, "STEPS": [], "CHECKPOINT_PERIOD": 2},
        "TEST": {"EVAL_PERIOD": 2},
    }
    base = ROOT / "configs/demo/soft_teacher_lite0_FPN.yaml"
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"_BASE_": str(base), **changes}))
    training = TrainingOnSlurm(slurm, tmp_path, tmp_path / "out")
    yield training
    if training.job:
        slurm.call("scancel", training.job)


@pytest.fixture(scope="session")
def uninterrupted(slurm, slurm_folder) -> TrainingOnSlurm:
    """One that nothing happened to, complete."""
    training = TrainingOnSlurm(slurm, slurm_folder, slurm_folder / "uninterrupted")
    training.start()
    training.complete()
    return training


@pytest.fixture(scope="session")
def final(uninterrupted) -> dict:
    return checkpoint(uninterrupted.output)
