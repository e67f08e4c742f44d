"""tools/slurm_suite.py without SLURM: what is handed in, and how a job is queued again."""

import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from soft_teacher.engine.slurm_submission import Resources

ROOT = Path(__file__).resolve().parents[1]
SUITE = str(ROOT / "configs/suites/table_6.yaml")
BASE = str(ROOT / "configs/coco/soft_teacher_R_50_FPN_10pct.yaml")


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


slurm_suite = load_tool("slurm_suite")


def handed_in(monkeypatch, *arguments: str) -> tuple[list, Resources]:
    """The jobs that would be given to SLURM, and what they ask for."""
    seen = []
    monkeypatch.setattr(slurm_suite, "submit", lambda *x: seen.append(x) or [])
    assert slurm_suite.main([*arguments, "--", SUITE, "--base", BASE, "--seeds", "0", "3"]) == 0
    ((jobs, resources, _),) = seen
    return jobs, resources


def test_each_training_of_the_suite_is_a_job_with_the_command_that_the_suite_lists(
    monkeypatch, capsys
):
    jobs, resources = handed_in(monkeypatch, "--gpus", "4", "--time", "2-00:00:00")
    table = capsys.readouterr().out.splitlines()[-1]
    run_suite = load_tool("run_suite")
    options = [SUITE, "--base", BASE, "--seeds", "0", "3", "--processes", "4"]
    assert run_suite.main([*options, "--list-commands"]) == 0
    listed = [shlex.split(x) for x in capsys.readouterr().out.splitlines()]
    assert [list(x.arguments) for x in jobs] == [x[2:] for x in listed]
    # Three rows with two seeds.
    assert len(jobs) == 6
    assert all(x.arguments[x.arguments.index("--processes") + 1] == "4" for x in jobs)
    assert all(x.script == ROOT / "tools/run_suite.py" for x in jobs)
    # One task, which starts the processes itself.
    assert (resources.nodes, resources.gpus_per_node, resources.num_tasks_per_node) == (1, 4, 1)
    # The table is of the very same trainings.
    command = shlex.split(table.partition(": ")[2])
    args = run_suite.parse_args(command[2:])
    assert (args.report_only, args.processes, args.seeds) == (True, 4, [0, 3])


def test_the_batch_script_is_that_of_an_array_of_single_tasks(capsys):
    options = ["--gpus", "8", "--partition", "gpu", "--dry-run", "--job-dir", "/shared/jobs"]
    row = yaml.safe_load(Path(SUITE).read_text())["rows"][1]["name"]
    arguments = [*options, "--", SUITE, "--base", BASE, "--rows", row, "--seeds"]
    assert slurm_suite.main([*arguments, "1"]) == 0
    one = capsys.readouterr().out.splitlines()
    assert "#SBATCH --gpus-per-node=8" in one
    assert "#SBATCH --ntasks-per-node=1" in one
    assert "#SBATCH --partition=gpu" in one
    assert not any("--array" in x for x in one)
    assert slurm_suite.main([*arguments, "1", "2", "3"]) == 0
    assert "#SBATCH --array=0-2%3" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gpus", "8", "--", SUITE, "--base", BASE, "--processes", "8"], "leave it out"),
        (["--gpus", "-1", "--", SUITE, "--base", BASE], "--gpus-per-node is -1"),
        (["--gpus", "8", "--", "no.yaml", "--base", BASE], "There is no suite no.yaml"),
        (["--gpus", "8", "--", SUITE, "--base", BASE], "there is no sbatch on this machine"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(arguments, words, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        slurm_suite.main(arguments)
    assert end.value.code == 2
    assert words in " ".join(capsys.readouterr().err.split())


# In place of run_suite.py: stopped by SIGUSR2 the first time; with another argument it fails.
SCRIPT = """
import pathlib, sys
def main(argv):
    log = pathlib.Path(argv[0])
    with log.open("a") as file:
        file.write("called\\n")
    if argv[1] == "fails":
        return 1
    return 140 if log.read_text().count("called") == 1 else 0
"""
RUN = """
import sys
from pathlib import Path
from soft_teacher.engine.slurm_job import SuiteCellJob
from soft_teacher.engine.slurm_submission import Resources, run_locally
script, log, how, folder = sys.argv[1:]
resources = Resources(1, 0, 1, 10, 30, 3, None, "x", {})
sys.exit(not run_locally(SuiteCellJob(Path(script), (log, how)), resources, Path(folder)))
"""


@pytest.mark.parametrize(("how", "calls", "status"), [("stops", 2, 0), ("fails", 1, 1)])
def test_a_stopped_training_is_queued_again_and_a_failed_one_is_not(tmp_path, how, calls, status):
    script, log = tmp_path / "suite.py", tmp_path / "log.txt"
    script.write_text(SCRIPT)
    path = os.pathsep.join((str(ROOT / "projects"), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, "-c", RUN, script, log, how, tmp_path / "jobs"]
    done = subprocess.run([str(x) for x in command], env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == status
    assert log.read_text().count("called") == calls
