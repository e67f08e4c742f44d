"""A recipe scaled to another number of processes trains on the same images at the same pace."""

import math
from fractions import Fraction

import pytest
from detectron2.config import CfgNode

from soft_teacher.engine.schedule import (
    images_in_decay,
    read_unlabeled_decay,
    scale_to_world_size,
)
from tiny import tiny_config


def recipe(**overrides) -> CfgNode:
    keys = {
        "SOLVER__REFERENCE_WORLD_SIZE": 8,
        "SOLVER__IMS_PER_BATCH": 8,
        "SOLVER__IMS_PER_BATCH_UNLABELED": 32,
        "SOLVER__BASE_LR": 0.01,
        "SOLVER__MAX_ITER": 1000,
        "SOLVER__STEPS": (600, 800),
        "SOLVER__WARMUP_ITERS": 40,
        "SOLVER__CHECKPOINT_PERIOD": 100,
        "TEST__EVAL_PERIOD": 200,
        "SOFT_TEACHER__BURN_IN_ITERS": 80,
        "SOFT_TEACHER__UNLABELED_DECAY_ITERS": 160,
        "SOFT_TEACHER__EMA__MOMENTUM": 0.999,
    }
    return tiny_config(**{**keys, **overrides})


@pytest.mark.parametrize("world_size", [1, 2, 4, 16])
def test_training_sees_as_many_images_in_all(world_size):
    cfg = recipe()
    scaled = scale_to_world_size(cfg, world_size)
    factor = world_size / 8
    for key in ("IMS_PER_BATCH", "IMS_PER_BATCH_UNLABELED"):
        assert scaled.SOLVER[key] == cfg.SOLVER[key] * factor
        assert scaled.SOLVER[key] * scaled.SOLVER.MAX_ITER == cfg.SOLVER[key] * cfg.SOLVER.MAX_ITER
    assert scaled.SOLVER.BASE_LR == pytest.approx(0.01 * factor)
    assert scaled.SOLVER.STEPS == (600 / factor, 800 / factor)
    assert scaled.SOLVER.WARMUP_ITERS == 40 / factor
    assert scaled.SOLVER.CHECKPOINT_PERIOD == 100 / factor
    assert scaled.TEST.EVAL_PERIOD == 200 / factor
    assert scaled.SOFT_TEACHER.BURN_IN_ITERS == 80 / factor
    assert scaled.SOFT_TEACHER.UNLABELED_DECAY_ITERS == 160 / factor


@pytest.mark.parametrize("world_size", [1, 2, 4, 16])
def test_the_teacher_averages_over_as_many_images(world_size):
    cfg = recipe()
    scaled = scale_to_world_size(cfg, world_size)

    def half_life_in_images(c: CfgNode) -> float:
        return c.SOLVER.IMS_PER_BATCH * math.log(0.5) / math.log(c.SOFT_TEACHER.EMA.MOMENTUM)

    assert half_life_in_images(scaled) == pytest.approx(half_life_in_images(cfg))


def test_scaling_twice_is_scaling_once():
    once = scale_to_world_size(recipe(), 4)
    assert scale_to_world_size(once, 4) is once
    assert scale_to_world_size(scale_to_world_size(recipe(), 2), 4).SOLVER == once.SOLVER


def test_a_recipe_without_a_reference_is_left_as_it_is():
    cfg = recipe(SOLVER__REFERENCE_WORLD_SIZE=0)
    assert scale_to_world_size(cfg, 3) is cfg


def test_the_given_config_does_not_change_and_a_frozen_one_stays_frozen():
    cfg = recipe()
    cfg.freeze()
    before = cfg.dump()
    assert scale_to_world_size(cfg, 1).is_frozen()
    assert cfg.dump() == before


@pytest.mark.parametrize("key", ["IMS_PER_BATCH", "IMS_PER_BATCH_UNLABELED"])
def test_images_that_cannot_be_shared_out_are_an_error_that_names_the_key(key):
    cfg = recipe(**{f"SOLVER__{key}": 12})
    with pytest.raises(ValueError, match=rf"SOLVER\.{key} is 12"):
        scale_to_world_size(cfg, 4)


@pytest.mark.parametrize("full", [1, 2, 4, 7])
@pytest.mark.parametrize("decay_iters", [1, 3, 10, 1000])
def test_unlabeled_images_become_fewer_along_a_straight_line_to_none(full, decay_iters):
    max_iter = 2000
    counts = [images_in_decay(i, full, max_iter, decay_iters) for i in range(max_iter)]
    begin = max_iter - decay_iters
    assert counts[: begin + 1] == [full] * (begin + 1)
    assert sorted(counts, reverse=True) == counts
    for iteration in range(begin, max_iter):
        line = Fraction(full * (max_iter - iteration), decay_iters)
        assert abs(counts[iteration] - line) <= Fraction(1, 2)
    if decay_iters > 2 * full:
        assert counts[-1] == 0
        assert set(counts) == set(range(full + 1))


def test_without_decay_there_are_as_many_to_the_end_and_beyond():
    assert {images_in_decay(i, 4, 100, 0) for i in range(200)} == {4}
    assert images_in_decay(150, 4, 100, 10) == 0
    assert read_unlabeled_decay(recipe(SOFT_TEACHER__UNLABELED_DECAY_ITERS=0), 8) is None
    assert read_unlabeled_decay(recipe(SOFT_TEACHER__ENABLED=False), 8) is None


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 8), (2, 4), (8, 1)])
def test_each_process_and_micro_step_has_as_many_unlabeled_images(world_size, accumulation):
    cfg = scale_to_world_size(recipe(SOLVER__ACCUMULATION_STEPS=accumulation), world_size)
    decay = read_unlabeled_decay(cfg, world_size)
    assert [decay(i) for i in (0, 840, 880, 920, 960, 999)] == [4, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("decay_iters", [-1, 921])
def test_a_decay_that_does_not_fit_is_refused(decay_iters):
    cfg = recipe(SOFT_TEACHER__UNLABELED_DECAY_ITERS=decay_iters)
    with pytest.raises(ValueError, match=r"UNLABELED_DECAY_ITERS is .*must lie in 0 to 920"):
        read_unlabeled_decay(cfg, 8)
