"""A long training takes no more memory, files or processes at its end than near its beginning.

`make test-soak` runs it over thousands of steps.
"""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from resumed_trainings import train
from soft_teacher.engine import trainer
from soft_teacher.engine.trainer import HISTORY_LENGTH, SoftTeacherTrainer
from tiny_training import NARROW, assert_same, checkpoint, write_config

ROOT = Path(__file__).resolve().parents[1]
# Bytes a step, once the histories of logged scalars are full: 180 MB in the 180,000 steps of the
# longest schedule. What the allocator takes and gives back (2 MB) makes slopes of up to 1,300 over
# 1,800 steps, either way, so two standard errors are left to chance. In fewer steps than SPAN it
# hides such a slope; there the number of tensors tells of a leak.
SLOPE = 1024
SPAN = 1500


def test_only_so_many_values_of_a_logged_scalar_are_kept(tmp_path, monkeypatch):
    lengths = []

    def after_step(self):
        after_step_of_trainer(self)
        lengths.append({len(x.values()) for x in self.storage.histories().values()})

    after_step_of_trainer = SoftTeacherTrainer.after_step
    monkeypatch.setattr(SoftTeacherTrainer, "after_step", after_step)
    monkeypatch.setattr(trainer, "HISTORY_LENGTH", 3)
    train(write_config(tmp_path, **NARROW, DATASETS__TEST=()), tmp_path / "out")
    assert [max(x) for x in lengths] == [1, 2, 3, 3, 3, 3]


@pytest.mark.slow
def test_a_long_training_is_steady_and_repeats_to_the_bit(tmp_path, request):
    num_steps = request.config.getoption("--soak-steps")
    config = write_config(tmp_path, **NARROW, VIS_PERIOD=0, SOLVER__BASE_LR=0.001)
    path = os.pathsep.join(str(ROOT / x) for x in ("", "tests", "projects"))
    worker = [sys.executable, ROOT / "tests" / "soak_worker.py", config, tmp_path]
    ended = subprocess.run(
        [str(x) for x in [*worker, num_steps, num_steps // 10]],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-3000:]
    for name in ("first", "second"):
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        assert_steady([json.loads(x) for x in lines], name)
    assert_same(checkpoint(tmp_path / "first"), checkpoint(tmp_path / "second"))


def assert_steady(measured: list[dict], name: str) -> None:
    """Nothing grows in the second half, when all has been done once, evaluation included."""
    *during, end = measured
    late = [x for x in during if x["step"] > HISTORY_LENGTH]
    if late and late[-1]["step"] - late[0]["step"] >= SPAN:
        slope, error = memory_slope(late, name)
        assert slope - 2 * error < SLOPE
    speeds = [
        (b["step"] - a["step"]) / (b["seconds"] - a["seconds"])
        for a, b in itertools.pairwise(during)
    ]
    print(
        f"{name}: {speeds[0]:.2f} steps in a second of CPU at first, "
        f"{np.median(speeds):.2f} in the middle, {speeds[-1]:.2f} at last"
    )
    steady = during[len(during) // 2 : -1]
    for what in ("tensors", "files_open", "threads", "children", "files_written"):
        assert len({x[what] for x in steady}) == 1, (what, steady)
    # Only the final checkpoint comes on top.
    assert end["files_written"] <= steady[0]["files_written"] + 1
    assert end["children"] == 0


def memory_slope(measured: list[dict], name: str) -> tuple[float, float]:
    """Bytes a step, by the straight line of least squares, and the standard error of that."""
    steps, memory = ([x[key] for x in measured] for key in ("step", "memory"))
    line, covariance = np.polyfit(steps, memory, 1, cov=True)
    slope, error = line[0], covariance[0, 0] ** 0.5
    print(
        f"{name}: {slope:.0f} bytes a step, standard error {error:.0f}, in steps {steps[0]} to "
        f"{steps[-1]} (limit {SLOPE}), {memory[-1] / 2**20:.0f} MiB"
    )
    return slope, error


def test_a_leak_would_show_in_the_slope():
    random = np.random.default_rng(0)
    steps = range(1200, 3001, 300)

    def measured(leak: float) -> list[dict]:
        return [{"step": x, "memory": 4.6e8 + leak * x + random.normal(scale=5e5)} for x in steps]

    slopes = {leak: memory_slope(measured(leak), str(leak)) for leak in (0, 4096)}
    assert slopes[0][0] - 2 * slopes[0][1] < SLOPE < slopes[4096][0] - 2 * slopes[4096][1]
