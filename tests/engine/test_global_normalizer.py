"""Normalizers that processes have in common: how images are shared out makes no difference."""

from datetime import timedelta

import pytest
import torch

from ddp_worker import launch_two, train
from shares import (
    assert_equal_trainings,
    largest_difference,
    results_of_one,
    results_of_two,
)
from soft_teacher.engine import global_normalizer
from soft_teacher.engine.global_normalizer import normalize_globally, read_normalizer_scope
from soft_teacher.modeling.background_weighting import (
    box_regression_loss,
    loss_normalizers,
    soft_classification_loss,
)
from tiny import tiny_config

# Processes that wait for each other fail after this time.
PATIENCE = timedelta(seconds=60)
PAPER = {
    "SOFT_TEACHER.BACKGROUND.NORMALIZER": "paper",
    "SOFT_TEACHER.REGRESSION.NORMALIZER": "foreground",
}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    runs = {"official": (2, 1, "rank", {}), "paper": (2, 1, "rank", PAPER)}
    return results_of_one(tmp_path_factory.mktemp("one"), runs)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    runs = {
        f"{name} {scope}": (2, 1, scope, options)
        for name, options in (("official", {}), ("paper", PAPER))
        for scope in ("rank", "global")
    }
    return results_of_two(tmp_path_factory.mktemp("two"), runs)


def test_two_processes_train_as_one_with_all_images(one_process, two_processes):
    """One process has many pseudo boxes, the other one or, in two of three steps, none."""
    assert_equal_trainings(two_processes["official global"][0], one_process["official"])


def test_normalizers_of_each_process_make_it_another_training(one_process, two_processes):
    found, one = two_processes["official rank"][0], one_process["official"]
    for name in ("loss_cls_unsup", "loss_box_reg_unsup"):
        ratio = found["logged"][0][name] / one["logged"][0][name]
        assert abs(ratio - 1) > 0.01
    # Of what is not divided by a count, nothing changes.
    for name in ("loss_cls", "loss_box_reg", "loss_rpn_cls_unsup", "loss_rpn_loc_unsup"):
        assert found["logged"][0][name] == pytest.approx(one["logged"][0][name], rel=1e-5)
    assert largest_difference(found["gradients"][0], one["gradients"][0]) > 0.01


def test_processes_end_with_the_same_weights(two_processes):
    for first, second in two_processes.values():
        for model in ("student", "teacher"):
            assert all(torch.equal(first[model][k], second[model][k]) for k in first[model])


@pytest.mark.parametrize("scope", ["rank", "global"])
def test_formulas_of_the_paper_do_not_depend_on_the_scope(one_process, two_processes, scope):
    assert_equal_trainings(two_processes[f"paper {scope}"][0], one_process["paper"])


def test_a_failure_on_one_process_skips_the_step_on_both(tmp_path):
    launch_two(train, tmp_path, "global", timeout=PATIENCE)
    results = [torch.load(tmp_path / f"{rank}.pth", weights_only=True) for rank in range(2)]
    for result in results:
        assert (result["updates"], result["skipped"]) == ([1, 1, 1, 1, 2], 3)
    for model in ("student", "teacher"):
        first, second = (x[model] for x in results)
        assert all(torch.equal(first[k], second[k]) for k in first)
        assert all(torch.isfinite(x).all() for x in first.values())


def losses_and_normalizers(rois, rows, images, cls, reg):
    """Both losses of the RoIs and images of one process, with their normalizers."""
    losses, is_background, reliability, image_index, foreground_losses = (x[rows] for x in rois)
    index = image_index - images[0]
    weights = torch.where(is_background, reliability, torch.ones_like(reliability))
    foreground = (~is_background).to(losses.dtype)
    sums, counts = (
        losses.new_zeros(len(images)).index_add(0, index, x)
        for x in (foreground_losses * foreground, foreground)
    )
    found = {
        "loss_cls": soft_classification_loss(
            losses, is_background, reliability, index, len(images), cls
        ),
        "loss_box_reg": box_regression_loss(sums, counts, len(losses), reg),
    }
    return found, loss_normalizers(weights, len(images), cls, reg)


@pytest.mark.parametrize(("cls", "reg"), [("joint", "sampled"), ("paper", "foreground")])
@pytest.mark.parametrize("boundary", [0, 1, 30, 60])
def test_the_mean_over_processes_is_the_loss_on_all_rois(cls, reg, boundary, monkeypatch):
    """Processes with two images each, of which the first has so many of 60 RoIs."""
    generator = torch.Generator().manual_seed(boundary)
    losses, reliability, foreground_losses = torch.rand(3, 60, generator=generator).double()
    is_background = torch.rand(60, generator=generator) < 0.7
    # The sum of the weights of a single RoI is below 1.
    is_background[0] = True
    image_index = torch.arange(60) % 2 + 2 * (torch.arange(60) >= boundary)
    rois = (losses, is_background, reliability, image_index, foreground_losses)
    shares = [
        losses_and_normalizers(rois, slice(0, boundary), range(2), cls, reg),
        losses_and_normalizers(rois, slice(boundary, 60), range(2, 4), cls, reg),
    ]
    everywhere = sum(torch.stack(list(normalizers.values())) for _, normalizers in shares)
    monkeypatch.setattr(global_normalizer.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(global_normalizer.dist, "all_reduce", lambda x: x.copy_(everywhere))
    found = [normalize_globally(*share) for share in shares]
    expected, _ = losses_and_normalizers(rois, slice(0, 60), range(4), cls, reg)
    for name, loss in expected.items():
        mean = (found[0][name] + found[1][name]) / 2
        assert float(mean) == pytest.approx(float(loss), rel=1e-12)
        assert float(loss) > 0


def test_an_unknown_scope_is_an_error_that_names_the_key():
    cfg = tiny_config(**{"SOFT_TEACHER.NORMALIZER_SCOPE": "batch"})
    with pytest.raises(ValueError, match=r"SOFT_TEACHER\.NORMALIZER_SCOPE is 'batch'"):
        read_normalizer_scope(cfg)


def test_common_normalizers_of_an_accumulated_step_are_refused():
    keys = {"SOFT_TEACHER.NORMALIZER_SCOPE": "global", "SOLVER.ACCUMULATION_STEPS": 2}
    with pytest.raises(ValueError, match=r"NORMALIZER_SCOPE.*SOLVER\.ACCUMULATION_STEPS"):
        read_normalizer_scope(tiny_config(**keys))
