"""Two processes on gloo: one backward, one decision, one teacher."""

from datetime import timedelta

import pytest
import torch
from detectron2.engine import launch

from ddp_worker import average_statistics, lose_an_image, read_other_data, train


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddp")
    launch(train, 2, dist_url="auto", args=(str(folder),))
    return [torch.load(folder / f"{rank}.pth", weights_only=True) for rank in range(2)]


def test_every_trainable_parameter_gets_a_gradient(results):
    assert [x["missing"] for x in results] == [[], []]


def test_a_failure_on_one_process_skips_the_step_on_both(results):
    for result in results:
        assert result["updates"] == [1, 1, 1, 2]
        assert result["skipped"] == 2


@pytest.mark.parametrize("model", ["student", "teacher"])
def test_models_are_bit_identical_across_processes(results, model):
    first, second = (x[model] for x in results)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert all(torch.isfinite(v).all() for v in first.values())


def test_running_statistics_are_averaged_over_processes(tmp_path):
    launch(average_statistics, 2, dist_url="auto", args=(str(tmp_path),))
    for rank in range(2):
        state = torch.load(tmp_path / f"norm_{rank}.pth", weights_only=True)
        assert state["running_mean"].tolist() == [0.5] * 3
        assert state["running_var"].tolist() == [3.0] * 3


def test_an_image_that_one_process_lacks_stops_both_before_the_step(tmp_path):
    # Processes that wait for each other fail after this time.
    limit = timedelta(seconds=60)
    launch(lose_an_image, 2, dist_url="auto", args=(str(tmp_path),), timeout=limit)
    results = [torch.load(tmp_path / f"lost_{rank}.pth", weights_only=True) for rank in range(2)]
    assert results[0] == results[1]
    assert "Cannot read the image lost.png" in results[0]["message"]
    assert results[0]["consumed"] == [1, 1]


def test_processes_that_have_read_other_data_all_stop(tmp_path):
    limit = timedelta(seconds=60)
    launch(read_other_data, 2, dist_url="auto", args=(str(tmp_path),), timeout=limit)
    results = [torch.load(tmp_path / f"other_{rank}.pth", weights_only=True) for rank in range(2)]
    assert results[0] == results[1]
    assert "labeled sets differ" in results[0]["message"]
    assert "process 0: 5 images" in results[0]["message"]
