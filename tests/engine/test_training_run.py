"""Trainings as commands: none is lost, repeated or mixed up with another."""

import json

import pytest

from soft_teacher import add_soft_teacher_config, config
from soft_teacher.engine.training_run import (
    TrainingFailedError,
    TrainingRun,
    stretched_schedule,
)

# In place of train_net.py: logs its arguments, and fails while a file named "fail" is there.
SCRIPT = """
import json, pathlib, sys
output = pathlib.Path(sys.argv[sys.argv.index("OUTPUT_DIR") + 1])
with open(output / "calls.txt", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
(output / "last_checkpoint").write_text("model.pth")
with open(output / "metrics.json", "a") as file:
    file.write(json.dumps({"iteration": 19, "eta_seconds": 3.0, "eval_seconds": 0.001}) + "\\n")
if pathlib.Path(sys.argv[0]).with_name("fail").exists():
    print("a line of output")
    sys.exit("the cause")
"""


@pytest.fixture
def make(tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "config.yaml").write_text("SOLVER:\n  MAX_ITER: 200\n  STEPS: (100, 150)\n")

    def make_run(*overrides, inputs="digest", name="run"):
        return TrainingRun(
            tmp_path / "train.py", tmp_path / "config.yaml", overrides, tmp_path / name, inputs
        )

    return make_run


def complete(run):
    run.complete(lambda progress: None)


def calls(run):
    return [json.loads(line) for line in (run.output_dir / "calls.txt").read_text().splitlines()]


def test_the_command_is_what_a_person_types(make, tmp_path):
    run = make("SEED", "3")
    complete(run)
    expected = ["--config-file", str(tmp_path / "config.yaml"), "SEED", "3"]
    assert calls(run) == [[*expected, "OUTPUT_DIR", str(run.output_dir)]]
    assert run.finished
    assert run.seconds > run.training_seconds > 0
    assert run.seconds - run.training_seconds == pytest.approx(0.001)


def test_a_failed_training_says_why_and_is_resumed(make, tmp_path):
    run = make()
    (tmp_path / "fail").touch()
    with pytest.raises(TrainingFailedError, match=r"(?s)a line of output.*the cause.*exit code 1"):
        complete(run)
    assert not run.finished
    assert run.can_resume
    spent = run.seconds
    (tmp_path / "fail").unlink()
    complete(run)
    assert ["--resume" in call for call in calls(run)] == [False, True]
    assert run.finished
    assert run.seconds > spent > 0


def test_an_interrupted_training_is_waited_for_until_it_has_saved(make, tmp_path):
    (tmp_path / "train.py").write_text(
        "import pathlib, signal, sys, time\n"
        'output = pathlib.Path(sys.argv[sys.argv.index("OUTPUT_DIR") + 1])\n'
        "def save(*_):\n"
        "    time.sleep(0.5)\n"
        '    (output / "saved").touch()\n'
        "    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        '(output / "metrics.json").write_text(\'{"iteration": 0, "eta_seconds": 1.0}\\n\')\n'
        "time.sleep(60)\n"
    )

    def interrupt(progress):
        raise KeyboardInterrupt

    run = make()
    with pytest.raises(KeyboardInterrupt):
        run.complete(interrupt)
    assert (run.output_dir / "saved").exists()
    assert not run.finished


def test_without_a_checkpoint_a_training_starts_over(make, tmp_path):
    run = make()
    (tmp_path / "fail").touch()
    with pytest.raises(TrainingFailedError):
        complete(run)
    (run.output_dir / "last_checkpoint").unlink()
    (tmp_path / "fail").unlink()
    complete(run)
    assert len(calls(run)) == 1
    assert "--resume" not in calls(run)[0]


@pytest.mark.parametrize(
    ("overrides", "inputs"), [(("SEED", "3"), "digest"), ((), "digest of other data")]
)
def test_another_config_or_other_data_is_another_training(make, overrides, inputs):
    complete(make())
    other = make(*overrides, inputs=inputs)
    assert not other.finished
    assert not other.can_resume
    complete(other)
    assert len(calls(other)) == 1
    assert other.finished
    assert not make().finished


def test_a_config_that_says_the_same_is_the_same_training(make):
    complete(make())
    assert make("SOLVER.MAX_ITER", "200").finished


def test_a_key_that_a_later_version_adds_does_not_make_it_another_training(make, monkeypatch):
    def add_keys_and_one_more(cfg):
        add_soft_teacher_config(cfg)
        cfg.SOFT_TEACHER.OF_A_LATER_VERSION = value

    before = make().fingerprint
    value = 1
    monkeypatch.setattr(config, "add_soft_teacher_config", add_keys_and_one_more)
    assert make().fingerprint == before
    assert make("SOFT_TEACHER.OF_A_LATER_VERSION", "2").fingerprint != before


def test_files_of_something_else_are_not_deleted(make):
    run = make()
    run.output_dir.mkdir()
    (run.output_dir / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="move them away"):
        complete(run)
    assert (run.output_dir / "thesis.txt").exists()


def test_a_training_is_stretched_to_a_time_with_its_schedule(make):
    run = make("TEST.EVAL_PERIOD", "40")
    complete(run)
    longer = make(*run.stretched_to(2.5 * run.training_seconds)).config()
    assert longer.SOLVER.MAX_ITER == 500
    assert longer.SOLVER.STEPS == (250, 375)
    assert longer.TEST.EVAL_PERIOD == 100


def test_burn_in_and_decay_are_stretched_with_the_schedule(make):
    keys = ("SOFT_TEACHER.BURN_IN_ITERS", "60", "SOFT_TEACHER.UNLABELED_DECAY_ITERS", "30")
    cfg = make(*keys).config()
    longer = make(*stretched_schedule(cfg, 3)).config()
    assert longer.SOLVER.MAX_ITER == 600
    assert longer.SOFT_TEACHER.BURN_IN_ITERS == 180
    assert longer.SOFT_TEACHER.UNLABELED_DECAY_ITERS == 90


def test_what_is_turned_off_is_not_stretched(make):
    cfg = make("TEST.EVAL_PERIOD", "0").config()
    longer = make(*stretched_schedule(cfg, 4)).config()
    assert longer.TEST.EVAL_PERIOD == 0
    assert longer.SOFT_TEACHER.BURN_IN_ITERS == 0
    assert longer.SOFT_TEACHER.UNLABELED_DECAY_ITERS == 0


def test_progress_is_that_of_the_last_logged_iteration(make):
    run = make()
    complete(run)
    seen = []
    run._report(seen.append, max_iter=200)
    assert (seen[0].iteration, seen[0].max_iter, seen[0].seconds_left) == (20, 200, 3.0)
