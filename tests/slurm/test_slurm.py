"""Trainings on a real SLURM of two nodes are preempted, timed out and killed, and lose nothing."""

import os
import re
import signal
import subprocess

import pytest

from tiny_training import assert_same, checkpoint

pytestmark = pytest.mark.slurm


def preempt(slurm) -> None:
    """Let another job take both nodes for a moment."""
    options = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"]
    slurm.call("sbatch", *options, "--wrap=true")


def assert_went_on_exactly(training, final) -> None:
    """It was stopped once, and the second run went on from the checkpoint of the stop."""
    assert_same(training.complete(), final)
    assert training.facts()["Restarts"] == "1"
    log = (training.output / "log.txt").read_text()
    starts = re.findall(r"Starting training from iteration (\d+)", log)
    stops = re.findall(r"Stopped by \w+; --resume goes on", log)
    assert (len(starts), len(stops)) == (2, 1), log
    assert starts[0] == "0"
    assert (training.output / f"model_{int(starts[1]) - 1:07d}.pth").exists()


def test_a_job_on_two_nodes_has_one_process_and_one_log_on_each(uninterrupted, final):
    assert len(final["random_states"]) == 2
    for rank, log in enumerate(uninterrupted.log_files):
        assert f"global_rank={rank}(2)" in log.read_text()


def test_a_preempted_job_goes_on_exactly_where_it_was_stopped(slurm, training, final):
    training.start("--partition", "low")
    with training.frozen() as ranks:
        preempt(slurm)
        slurm.wait_for_signal(ranks, signal.SIGUSR2)
    assert_went_on_exactly(training, final)


def test_a_cluster_that_preempts_by_sigterm_makes_no_difference(slurm, training, final):
    with slurm.preempting_by_sigterm():
        training.start("--partition", "low")
        with training.frozen() as ranks:
            preempt(slurm)
            slurm.wait_for_signal(ranks, signal.SIGTERM)
        assert_went_on_exactly(training, final)


def test_a_job_at_its_time_limit_goes_on_exactly_where_it_was_stopped(training, final):
    training.start("--time", 10, "--signal-delay", 30)
    with training.frozen() as ranks:
        training.come_to_the_time_limit(ranks)
    assert_went_on_exactly(training, final)


def test_a_job_that_may_not_time_out_again_fails_with_what_it_learned_saved(training, final):
    training.start("--time", 10, "--signal-delay", 30, "--max-timeouts", 0)
    with training.frozen() as ranks:
        training.come_to_the_time_limit(ranks)
    assert training.wait_for_end() == "FAILED"
    assert "timed-out too many times" in training.logs()
    training.start()
    assert_same(training.complete(), final)


def test_a_killed_process_fails_the_job_and_the_same_command_goes_on_exactly(training, final):
    training.start()
    with training.frozen() as ranks:
        os.kill(ranks[1], signal.SIGKILL)
    assert training.wait_for_end() == "FAILED"
    training.start()
    assert_same(training.complete(), final)


def test_a_cancelled_job_does_not_come_back(slurm, training, final):
    training.start()
    with training.frozen() as ranks:
        slurm.call("scancel", training.job)
        slurm.wait_for_signal(ranks, signal.SIGTERM)
    assert training.wait_for_end() == "CANCELLED"
    assert training.facts()["Restarts"] == "0"
    training.start()
    assert_same(training.complete(), final)


def test_the_demos_training_on_two_nodes_equals_that_of_two_processes_here(demo_training):
    demo_training.start()
    final = demo_training.complete()
    here = demo_training.output.with_name("here")
    python, program, *options = demo_training.plain_command()
    options[-1] = str(here)
    subprocess.run([python, program, "--num-gpus", "2", *options], check=True, timeout=600)
    assert_same(checkpoint(here), final)


def test_an_array_trains_each_fold_in_a_folder_of_its_own(slurm, training, final):
    folder = training.output / "{fold}"
    training.start("--array", "DATASETS.FOLD", 1, 2, "SOLVER.MAX_ITER", 2, output=folder)
    assert training.wait_for_end() == "COMPLETED"
    for fold in ("1", "2"):
        slurm.wait_until((training.output / fold / "model_final.pth").exists, f"Fold {fold}")


def test_plain_srun_trains_with_one_process_a_task(slurm, training, final):
    command = ["srun", "--nodes=2", "--ntasks-per-node=1", *training.plain_command()]
    result = slurm.call(*command)
    assert result.returncode == 0, result.stdout
    assert_same(checkpoint(training.output), final)


def test_a_batch_script_that_calls_train_net_once_is_a_plain_start(slurm, training):
    """It has variables of a job of two nodes with one task each, of which it is none."""
    script = f"{' '.join(training.plain_command())} SOLVER.MAX_ITER 2"
    options = ["--wait", "--nodes=2", "--ntasks-per-node=1", f"--output={training.output}.txt"]
    slurm.call("sbatch", *options, f"--wrap={script}")
    assert len(checkpoint(training.output)["random_states"]) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--partition", "nowhere"), "Invalid partition name specified"),
        (("--nodes", 4), "Node count specification invalid"),
        (("--tasks-per-node", 99), "More processors requested than permitted"),
        (("--gpus-per-node", 1), "Invalid generic resource (gres) specification"),
    ],
)
def test_what_slurm_refuses_is_said_in_its_words(training, options, words):
    result = training.submit(*options)
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not training.job
