"""What the rehearsal says of a config's numbers: right, and wrong ones are named."""

from pathlib import Path

import pytest

from soft_teacher import load_config
from soft_teacher.data.splits import choose_labeled
from soft_teacher.engine.rehearsal.arithmetic import read_recipe
from soft_teacher.engine.rehearsal.contradictions import contradictions
from soft_teacher.engine.rehearsal.set_sizes import set_size, total_size
from soft_teacher.engine.schedule import read_unlabeled_decay, scale_to_world_size
from tiny import tiny_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# A recipe of 8 GPUs in which nothing contradicts itself.
SOUND = {
    "SOLVER__REFERENCE_WORLD_SIZE": 8,
    "SOLVER__IMS_PER_BATCH": 8,
    "SOLVER__IMS_PER_BATCH_UNLABELED": 32,
    "SOLVER__BASE_LR": 0.01,
    "SOLVER__MAX_ITER": 20_000,
    "SOLVER__STEPS": (12_000, 16_000),
    "SOLVER__WARMUP_ITERS": 500,
    "SOLVER__CHECKPOINT_PERIOD": 4_000,
    "DATASETS__TRAIN": ("coco_semi_{fold}@10",),
    "DATASETS__UNLABELED": ("coco_semi_{fold}@10_unlabeled",),
    "INPUT__MIN_SIZE_TRAIN": (400, 1200),
}
NAME = "soft_teacher_R_18_FPN_10pct_20k"


@pytest.mark.parametrize("percent", [1, 2, 5, 10])
def test_splits_have_as_many_images_as_they_are_drawn_with(percent):
    ids = range(set_size("coco_2017_train"))
    labeled = choose_labeled(ids, percent, fold=1)
    assert set_size(f"coco_semi_1@{percent}") == len(labeled)
    assert set_size(f"coco_semi_{{fold}}@{percent}_unlabeled") == len(ids) - len(labeled)


def test_sets_are_added_up_and_unknown_ones_are_not_guessed():
    assert total_size(("coco_2017_train", "coco_2017_unlabeled")) == 118_287 + 123_403
    assert total_size(("digits_labeled", "digits_unlabeled")) == set_size("digits_all")
    few = (set_size("pennfudan_{fold}@5"), set_size("pennfudan_1@5_unlabeled"))
    assert few == (6, 114) and sum(few) == set_size("pennfudan_all")
    assert total_size(("coco_2017_train", "mine")) is None
    assert total_size(()) is None


def test_passes_and_rates_are_those_of_a_count_image_by_image():
    keys = {"SOFT_TEACHER__BURN_IN_ITERS": 2_000, "SOFT_TEACHER__UNLABELED_DECAY_ITERS": 1_000}
    cfg = tiny_config(**SOUND, **keys)
    recipe = read_recipe(cfg)
    decay = read_unlabeled_decay(cfg, world_size=8)
    seen = {"labeled": 0, "unlabeled": 0}
    for iteration in range(20_000):
        seen["labeled"] += 8
        seen["unlabeled"] += 8 * decay(iteration) if iteration >= 2_000 else 0
    assert recipe.labeled_passes == pytest.approx(seen["labeled"] / 11_828)
    unlabeled_passes = seen["unlabeled"] / (118_287 - 11_828)
    assert recipe.unlabeled_passes == pytest.approx(unlabeled_passes, rel=1e-3)
    assert recipe.learning_rate_per_image == pytest.approx(0.01 / 40)
    assert recipe.ema_horizon == pytest.approx(1000)


def test_a_recipe_on_another_number_of_gpus_sees_the_sets_as_often():
    cfg = tiny_config(**SOUND)
    own, single = read_recipe(cfg), read_recipe(scale_to_world_size(cfg, 1))
    assert (single.labeled, single.unlabeled, single.gpus) == (1, 4, 1)
    assert single.labeled_passes == pytest.approx(own.labeled_passes)
    assert single.unlabeled_passes == pytest.approx(own.unlabeled_passes)
    assert single.learning_rate_per_image == pytest.approx(own.learning_rate_per_image)


def test_supervised_recipes_have_no_unlabeled_images():
    recipe = read_recipe(
        tiny_config(**SOUND, SOFT_TEACHER__ENABLED=False, SOFT_TEACHER__EMA__ENABLED=False)
    )
    assert (recipe.unlabeled, recipe.unlabeled_passes, recipe.ema_horizon) == (0, None, None)
    assert recipe.learning_rate_per_image == pytest.approx(0.01 / 8)


def test_a_sound_recipe_has_no_contradiction():
    assert contradictions(tiny_config(**SOUND), NAME) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"SOLVER__STEPS": (12_000, 20_000)}, "STEPS (12000, 20000)"),
        ({"SOLVER__STEPS": (16_000, 12_000)}, "must follow one another"),
        ({"SOLVER__WARMUP_ITERS": 13_000}, "SOLVER.WARMUP_ITERS 13000"),
        ({"SOLVER__IMS_PER_BATCH": 12}, "SOLVER.IMS_PER_BATCH is 12, no multiple of the 8 GPUs"),
        ({"SOLVER__IMS_PER_BATCH_UNLABELED": 9}, "SOLVER.IMS_PER_BATCH_UNLABELED is 9"),
        ({"SOLVER__CHECKPOINT_PERIOD": 30_000}, "nothing is saved before the end"),
        ({"SOFT_TEACHER__BURN_IN_ITERS": 20_000}, "no unlabeled image is used"),
        ({"SOFT_TEACHER__EMA__MOMENTUM": 0.99999}, "averages over 100,000 steps"),
        ({"DATASETS__UNLABELED": ()}, "DATASETS.UNLABELED is empty"),
        (
            {"DATASETS__UNLABELED": ("coco_semi_{fold}@5_unlabeled",)},
            "coco_semi_{fold}@5_unlabeled in DATASETS.UNLABELED is not the rest of",
        ),
        ({"DATASETS__TRAIN": ("coco_semi_{fold}@1",)}, "Its name says 10 %"),
        ({"SOFT_TEACHER__PSEUDO_LABELS__FILES": ("a", "b")}, "2 files for 1 sets"),
        ({"MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.6}, "no detection in between"),
        ({"INPUT__MIN_SIZE_TRAIN": (400, 2000)}, "no side is longer than MAX_SIZE_TRAIN, 1333"),
        ({"SOLVER__MAX_ITER": 30_000}, "Its name says 20k, but SOLVER.MAX_ITER is 30000"),
        ({"MODEL__RESNETS__DEPTH": 50}, "Its name says R_18"),
    ],
)
def test_each_contradiction_is_named(changes, words):
    found = contradictions(tiny_config(**{**SOUND, **changes}), NAME)
    assert any(words in x for x in found), found


def test_sets_that_are_left_to_the_user_are_no_contradiction():
    cfg = load_config(str(CONFIGS / "custom/soft_teacher_R_50_FPN.yaml"))
    assert not cfg.DATASETS.TRAIN
    assert contradictions(cfg, "soft_teacher_R_50_FPN") == []
