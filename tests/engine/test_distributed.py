"""Two processes on gloo: one backward, one decision, one teacher."""

from datetime import timedelta

import pytest
import torch

from ddp_worker import (
    average_statistics,
    launch_two,
    list_threads,
    lose_an_image,
    read_other_data,
    train,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    launch_two(train, folder)
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2)]


def test_every_trainable_parameter_gets_a_gradient(results):
    assert [x["missing"] for x in results] == [[], []]


def test_a_failure_on_one_process_skips_the_step_on_both(results):
    for result in results:
        assert result["updates"] == [1, 1, 1, 1, 2]
        assert result["skipped"] == 3


@pytest.mark.parametrize("model", ["student", "teacher"])
def test_models_are_bit_identical_across_processes(results, model):
    first, second = (x[model] for x in results)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert all(torch.isfinite(v).all() for v in first.values())


def test_running_statistics_are_averaged_over_processes(tmp_path):
    launch_two(average_statistics, tmp_path)
    for rank in range(2):
        state = torch.load(tmp_path / f"norm_{rank}.pth", weights_only=True)
        assert state["running_mean"].tolist() == [0.5] * 3
        assert state["running_var"].tolist() == [3.0] * 3


def test_an_image_that_one_process_lacks_stops_both_before_the_step(tmp_path):
    # Processes that wait for each other fail after this time.
    launch_two(lose_an_image, tmp_path, timeout=timedelta(seconds=60))
    results = [torch.load(tmp_path / f"lost_{rank}.pth", weights_only=True) for rank in range(2)]
    assert results[0] == results[1]
    assert "Cannot read the image lost.png" in results[0]["message"]
    assert results[0]["consumed"] == [1, 1]


def test_processes_that_have_read_other_data_all_stop(tmp_path):
    launch_two(read_other_data, tmp_path, timeout=timedelta(seconds=60))
    results = [torch.load(tmp_path / f"other_{rank}.pth", weights_only=True) for rank in range(2)]
    assert results[0] == results[1]
    assert "labeled sets differ" in results[0]["message"]
    assert "process 0: 5 images" in results[0]["message"]


def test_no_thread_of_a_process_group_outlives_it(tmp_path):
    """Python's end would abort the process, now and then, in which such a thread is at work."""
    launch_two(list_threads, tmp_path)
    for rank in range(2):
        during, after = torch.load(tmp_path / f"threads_{rank}.pth", weights_only=True)
        assert any("gloo" in x for x in during)
        assert not any("gloo" in x for x in after)
