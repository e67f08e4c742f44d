"""A table of trainings as an array of jobs on a real SLURM."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tiny_training import NARROW, assert_same, checkpoint, write_config

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slurm


@pytest.fixture
def suite(tmp_path):
    """Folder with a base and a suite of two trainings of it."""
    config = write_config(
        tmp_path,
        **NARROW,
        DATASETS__TEST=(),
        VIS_PERIOD=0,
        TEST__EVAL_PERIOD=0,
        SOLVER__MAX_ITER=60,
        SOLVER__CHECKPOINT_PERIOD=6,
        SOLVER__CHECKPOINTS_TO_KEEP=100,
    )
    config.rename(tmp_path / "soft_teacher_x.yaml")
    rows = [
        {"name": str(lr), "paper": {}, "overrides": {"SOLVER.BASE_LR": lr}} for lr in (0.004, 0.003)
    ]
    content = {"title": "Rates", "repetitions": {"seeds": [0]}, "rows": rows}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(content))
    return tmp_path


def suite_arguments(suite: Path, output: str) -> list[str]:
    base = suite / "soft_teacher_x.yaml"
    return [str(x) for x in (suite / "suite.yaml", "--base", base, "--output", suite / output)]


def run_tool(name: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / "tools" / name), *arguments]
    # Jobs inherit it: with as many threads everywhere the bits are the same.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_training_is_a_job_and_one_that_is_preempted_goes_on_exactly(slurm, suite):
    options = ["--gpus", "0", "--time", "30", "--job-dir", str(suite / "jobs"), "--"]
    shown = run_tool("slurm_suite.py", *options, *suite_arguments(suite, "out"))
    jobs = re.findall(r"Submitted job (\w+),", shown)
    assert len(jobs) == 2
    cells = suite / "out/cells"
    slurm.wait_until(lambda: list(cells.glob("*/model_0000005.pth")), "The first checkpoint")
    # Whichever is that far.
    (first, *_) = cells.glob("*/model_0000005.pth")
    slurm.call("scancel", "--signal=USR2", *jobs)
    slurm.wait_until(lambda: "Stopped by" in (first.parent / "log.txt").read_text(), "A stop")

    def finished() -> bool:
        files = list(cells.glob("*/run.json"))
        return len(files) == 2 and all(json.loads(x.read_text())["finished"] for x in files)

    slurm.wait_until(finished, "The end of both trainings")
    run_tool("run_suite.py", *suite_arguments(suite, "here"), "--processes", "1")
    undisturbed = [x.parent for x in (suite / "here/cells").glob("*/model_final.pth")]
    assert len(undisturbed) == 2
    for folder in undisturbed:
        assert_same(checkpoint(cells / folder.name), checkpoint(folder))
    # The table command that was printed finds all of them.
    table = shown.partition("The table, when jobs are finished: python tools/run_suite.py ")[2]
    run_tool("run_suite.py", *table.split())
    content = json.loads((suite / "out/suite/table.json").read_text())
    assert [len(x["runs"]) for x in content["rows"]] == [1, 1]
