"""tools/slurm_train.py without SLURM; tests/slurm has what needs one."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from soft_teacher.engine.slurm_arguments import read_minutes
from soft_teacher.engine.slurm_submission import leave_other_jobs
from tiny_training import NARROW, assert_same, checkpoint, write_config

ROOT = Path(__file__).resolve().parents[1]
CONFIG = str(ROOT / "configs/coco/soft_teacher_R_50_FPN_10pct.yaml")
TIMEOUT = 600


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("slurm_train", ROOT / "tools/slurm_train.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


slurm_train = load_tool()


def dry_run(capsys, *arguments: str) -> str:
    """The batch script for the arguments."""
    command = ["--config-file", CONFIG, "--dry-run", "--job-dir", "/shared/jobs", *arguments]
    assert slurm_train.main(command) == 0
    return capsys.readouterr().out


def commands_of(monkeypatch, *arguments: str) -> list[tuple[str, ...]]:
    """The arguments with which train_net.py is called in each job."""
    handed_in = []
    monkeypatch.setattr(slurm_train, "act", lambda args, jobs, resources: handed_in.extend(jobs))
    slurm_train.main(["--config-file", CONFIG, "--gpus-per-node", "8", *arguments])
    return [x.arguments for x in handed_in]


def test_a_batch_script_asks_for_what_the_options_say(capsys):
    script = dry_run(
        capsys,
        *("--nodes", "2", "--gpus-per-node", "8", "--cpus-per-task", "6", "--time", "2-12:30:00"),
        *("--partition", "gpu", "--account", "lab", "--comment", "two words", "--mem", "64G"),
        *("--constraint", "a100", "--qos", "low", "--signal-delay", "300", "--job-name", "fold"),
    )
    lines = script.splitlines()
    for option in (
        *("nodes=2", "gpus-per-node=8", "ntasks-per-node=8", "cpus-per-task=6", "time=3630"),
        *("partition=gpu", "account=lab", "comment='two words'", "constraint=a100", "qos=low"),
        *("signal=USR2@300", "job-name=fold", "requeue", "open-mode=append", "mem=64G"),
    ):
        assert f"#SBATCH --{option}" in lines
    command = next(x for x in lines if x.startswith("srun "))
    assert "--kill-on-bad-exit=1 --cpus-per-task=6" in command
    assert "/shared/jobs/%j_%t_log.out" in command


def test_without_gpus_the_tasks_are_counted_by_themselves(capsys):
    script = dry_run(capsys, "--gpus-per-node", "0", "--tasks-per-node", "3")
    assert "#SBATCH --ntasks-per-node=3" in script
    assert "gpus" not in script


def test_a_job_always_goes_on_from_its_checkpoints(monkeypatch):
    assert commands_of(monkeypatch, "SEED", "3") == [
        ("--config-file", CONFIG, "--resume", "SEED", "3")
    ]
    # There it would mean another model.
    assert commands_of(monkeypatch, "--eval-only") == [("--config-file", CONFIG, "--eval-only")]


def test_an_array_gives_each_value_a_job_with_a_folder_of_its_own(monkeypatch, capsys):
    options = ["--array", "DATASETS.FOLD", "1", "4", "SEED", "3", "OUTPUT_DIR", "out/{fold}/x"]
    assert [x[-6:] for x in commands_of(monkeypatch, *options)] == [
        ("OUTPUT_DIR", "out/{fold}/x", "DATASETS.FOLD", x, "OUTPUT_DIR", f"out/{x}/x") for x in "14"
    ]
    options = ["--array", "SOLVER.BASE_LR", "0.01", "0.1", "OUTPUT_DIR", "out/{fold}"]
    assert [x[-1] for x in commands_of(monkeypatch, *options)] == [
        f"out/{{fold}}/base_lr_{x}" for x in ("0.01", "0.1")
    ]
    monkeypatch.undo()
    script = dry_run(capsys, "--gpus-per-node", "8", *options)
    assert "#SBATCH --array=0-1%2" in script
    assert "/shared/jobs/%A_%a_%t_log.out" in script


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus-per-node", "8", "--num-gpus", "8"], "give --gpus-per-node and --nodes"),
        (["--gpus-per-node", "8", "--tasks-per-node", "4"], "one task for each GPU"),
        (["--gpus-per-node", "-1"], "--gpus-per-node is -1; it must be at least 0"),
        (["--gpus-per-node", "8", "--nodes", "0"], "--nodes is 0; it must be at least 1"),
        (["--gpus-per-node", "8", "--time", "soon"], "--time is 'soon'"),
        (["--gpus-per-node", "8", "--time", "1"], "--signal-delay is 120 seconds"),
        (["--gpus-per-node", "8", "--array", "FOLD", "1"], "no config key FOLD"),
        (["--gpus-per-node", "8", "--array", "SEED", "OUTPUT_DIR", "x"], "give the values"),
        (["--gpus-per-node", "8", "--array", "SEED", "1", "1"], "would have one OUTPUT_DIR"),
        (["--gpus-per-node", "8", "--local", "--nodes", "2"], "with --local there is one machine"),
        (["--gpus-per-node", "8"], "there is no sbatch on this machine"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(options, message, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        slurm_train.main(["--config-file", CONFIG, *options])
    assert end.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("90", 90),
        ("90:30", 91),
        ("12:00:00", 720),
        ("2-1", 2940),
        ("2-1:05", 2945),
        ("1-00:00:01", 1441),
    ],
)
def test_times_are_read_as_slurm_writes_them(text, minutes):
    assert read_minutes(text) == minutes


def test_a_job_submitted_from_within_another_does_not_take_over_its_variables():
    kept = {"HOME": "/root", "SLURM_CONF": "/etc/slurm.conf", "SBATCH_ACCOUNT": "lab"}
    environ = {**kept, "SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "RANK": "1", "SRUN_DEBUG": "3"}
    leave_other_jobs(environ)
    assert environ == kept


@pytest.fixture
def folder(tmp_path):
    write_config(
        tmp_path,
        **NARROW,
        DATASETS__TEST=(),
        VIS_PERIOD=0,
        TEST__EVAL_PERIOD=0,
        DATALOADER__NUM_WORKERS=1,
        SOLVER__MAX_ITER=24,
        SOLVER__CHECKPOINT_PERIOD=6,
    )
    return tmp_path


def start_locally(folder: Path, output: Path) -> subprocess.Popen:
    command = [sys.executable, ROOT / "tools/slurm_train.py", "--local", "--gpus-per-node", 0]
    command += ["--tasks-per-node", 2, "--config-file", folder / "config.yaml"]
    command += ["--job-dir", output.with_name(f"{output.name}_jobs"), "OUTPUT_DIR", output]
    path = os.pathsep.join((str(ROOT / "projects"), os.environ.get("PYTHONPATH", "")))
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([str(x) for x in command], env=env, stdout=subprocess.PIPE, text=True)


def tasks_of(tool: subprocess.Popen) -> list[int]:
    """The training processes, which the process that submitit starts looks after."""

    def children(pid: int) -> list[int]:
        return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    return [task for controller in children(tool.pid) for task in children(controller)]


@pytest.mark.slow
def test_a_local_job_that_is_preempted_starts_again_and_goes_on_exactly(folder):
    whole, preempted = folder / "whole", folder / "preempted"
    assert start_locally(folder, whole).wait(TIMEOUT) == 0
    tool = start_locally(folder, preempted)
    end = time.monotonic() + TIMEOUT
    while not (preempted / "model_0000005.pth").exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    for pid in tasks_of(tool):
        os.kill(pid, signal.SIGUSR2)
    assert tool.wait(TIMEOUT) == 0
    assert_same(checkpoint(preempted), checkpoint(whole))
    log = (preempted / "log.txt").read_text()
    assert log.count("Stopped by SIGUSR2") == 1
    assert log.count("Starting training from iteration") == 2
