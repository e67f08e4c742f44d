"""A recipe scaled to another number of processes trains on the same images at the same pace."""

import math

import pytest
from detectron2.config import CfgNode

from soft_teacher.engine.schedule import scale_to_world_size
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
