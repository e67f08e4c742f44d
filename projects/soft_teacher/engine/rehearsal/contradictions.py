"""What in a config cannot be meant: numbers that do not go together."""

import re
from collections.abc import Iterator

from detectron2.config import CfgNode

from soft_teacher.config import head_section
from soft_teacher.engine.rehearsal.arithmetic import Recipe, read_recipe

SPLIT_MARK, UNLABELED_END = "@", "_unlabeled"


def contradictions(cfg: CfgNode, name: str) -> list[str]:
    """One sentence for each contradiction, which names the keys.

    Args:
        cfg: the config with the numbers that stand in it.
        name: of its file, without ".yaml"; what it says is compared with what it holds.
    """
    recipe = read_recipe(cfg)
    return [
        *_of_schedule(cfg, recipe),
        *_of_batch(recipe),
        *_of_sets(cfg),
        *_of_thresholds(cfg),
        *_of_scales(cfg),
        *_of_name(cfg, name),
    ]


def _of_schedule(cfg: CfgNode, recipe: Recipe) -> Iterator[str]:
    milestones = (recipe.warmup, *recipe.drops, recipe.iterations)
    if list(milestones) != sorted(set(milestones)):
        yield (
            f"SOLVER.WARMUP_ITERS {recipe.warmup}, STEPS {recipe.drops} and MAX_ITER "
            f"{recipe.iterations} must follow one another."
        )
    if recipe.burn_in >= recipe.iterations:
        yield (
            f"SOFT_TEACHER.BURN_IN_ITERS is {recipe.burn_in} of {recipe.iterations} iterations: no "
            "unlabeled image is used."
        )
    horizon = recipe.ema_horizon
    if horizon is not None and horizon > recipe.iterations / 2:
        yield (
            f"SOFT_TEACHER.EMA.MOMENTUM averages over {horizon:,.0f} steps, more than half of the "
            f"{recipe.iterations:,} iterations."
        )
    if cfg.SOLVER.CHECKPOINT_PERIOD > recipe.iterations:
        yield (
            f"SOLVER.CHECKPOINT_PERIOD is {cfg.SOLVER.CHECKPOINT_PERIOD}, more than there are "
            "iterations: nothing is saved before the end."
        )


def _of_batch(recipe: Recipe) -> Iterator[str]:
    for key, count in (
        ("IMS_PER_BATCH", recipe.labeled),
        ("IMS_PER_BATCH_UNLABELED", recipe.unlabeled),
    ):
        if recipe.gpus and count % recipe.gpus:
            yield f"SOLVER.{key} is {count}, no multiple of the {recipe.gpus} GPUs of the recipe."


def _of_sets(cfg: CfgNode) -> Iterator[str]:
    labeled, unlabeled = cfg.DATASETS.TRAIN, cfg.DATASETS.UNLABELED
    st = cfg.SOFT_TEACHER
    # Without either, they are left to the user.
    if not st.ENABLED or not labeled:
        return
    if not unlabeled:
        yield "SOFT_TEACHER.ENABLED is True, but DATASETS.UNLABELED is empty."
    files = st.PSEUDO_LABELS.FILES
    if files and len(files) != len(unlabeled):
        yield (
            f"SOFT_TEACHER.PSEUDO_LABELS.FILES names {len(files)} files for {len(unlabeled)} "
            "sets in DATASETS.UNLABELED."
        )
    splits = [x for x in labeled if SPLIT_MARK in x]
    for name in unlabeled:
        if splits and SPLIT_MARK in name and name.removesuffix(UNLABELED_END) not in splits:
            yield f"{name} in DATASETS.UNLABELED is not the rest of {', '.join(splits)}."


def _of_thresholds(cfg: CfgNode) -> Iterator[str]:
    section = head_section(cfg)
    st, test = cfg.SOFT_TEACHER, cfg.MODEL[section].SCORE_THRESH_TEST
    if st.ENABLED and not st.PSEUDO_LABELS.FILES and test > st.PSEUDO_LABELS.MIN_SCORE:
        yield (
            f"MODEL.{section}.SCORE_THRESH_TEST is {test}, above SOFT_TEACHER.PSEUDO_LABELS."
            f"MIN_SCORE, {st.PSEUDO_LABELS.MIN_SCORE}: the teacher gives no detection in between."
        )


def _of_scales(cfg: CfgNode) -> Iterator[str]:
    if max(cfg.INPUT.MIN_SIZE_TRAIN) > cfg.INPUT.MAX_SIZE_TRAIN:
        yield (
            f"INPUT.MIN_SIZE_TRAIN is {cfg.INPUT.MIN_SIZE_TRAIN}, but no side is longer than "
            f"MAX_SIZE_TRAIN, {cfg.INPUT.MAX_SIZE_TRAIN}."
        )


def _of_name(cfg: CfgNode, name: str) -> Iterator[str]:
    thousands = re.search(r"_(\d+)k(?![a-z0-9])", name)
    if thousands and int(thousands[1]) * 1000 != cfg.SOLVER.MAX_ITER:
        yield f"Its name says {thousands[1]}k, but SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER}."
    percent = re.search(r"_([\d.]+)pct(?![a-z0-9])", name)
    if percent and any(not x.endswith(f"{SPLIT_MARK}{percent[1]}") for x in cfg.DATASETS.TRAIN):
        yield f"Its name says {percent[1]} %, but DATASETS.TRAIN is {cfg.DATASETS.TRAIN}."
    depth = re.search(r"(?<![A-Za-z0-9])R_(\d+)(?![0-9])", name)
    if depth and int(depth[1]) != cfg.MODEL.RESNETS.DEPTH:
        yield f"Its name says R_{depth[1]}, but MODEL.RESNETS.DEPTH is {cfg.MODEL.RESNETS.DEPTH}."
