"""Scaling a recipe to the number of processes it runs on, and how its unlabeled images end."""

from collections.abc import Callable
from functools import partial

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer


def scale_to_world_size(cfg: CfgNode, world_size: int) -> CfgNode:
    """Detectron2's linear scaling rule, extended to what Soft Teacher adds.

    A config with SOLVER.REFERENCE_WORLD_SIZE = w holds the numbers for w GPUs. On k GPUs, with
    s = k / w, both image counts and the learning rate are multiplied by s; the length of training,
    its steps, warmup, burn-in, the decay of unlabeled images and the periods of evaluation and
    checkpoints are divided by it. So each GPU works on as many images, and training sees as many in
    all. The share of the teacher kept in each update becomes MOMENTUM ** s: the average spans as
    many images.

    A GPU with SOLVER.ACCUMULATION_STEPS = a stands for a of them, in all this.

    Args:
        cfg: the config; it is not changed.
        world_size: the number of processes.

    Returns:
        The scaled config, or `cfg` itself when there is nothing to scale.

    Raises:
        ValueError: the images of the recipe cannot be shared out evenly, or no GPU has a batch.
    """
    if cfg.SOLVER.ACCUMULATION_STEPS < 1:
        raise ValueError(
            f"SOLVER.ACCUMULATION_STEPS is {cfg.SOLVER.ACCUMULATION_STEPS}; set it to 1, one batch "
            "for each step, or more."
        )
    num_shares = world_size * cfg.SOLVER.ACCUMULATION_STEPS
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference in (0, num_shares):
        return cfg
    keys = ["IMS_PER_BATCH"]
    if cfg.SOFT_TEACHER.ENABLED:
        keys.append("IMS_PER_BATCH_UNLABELED")
    for key in keys:
        if cfg.SOLVER[key] % reference != 0:
            raise ValueError(
                f"SOLVER.{key} is {cfg.SOLVER[key]}, which is no multiple of "
                f"SOLVER.REFERENCE_WORLD_SIZE ({reference}); change one of them."
            )
    scaled = DefaultTrainer.auto_scale_workers(cfg, num_shares)
    frozen = scaled.is_frozen()
    scaled.defrost()
    scale = num_shares / reference
    st = scaled.SOFT_TEACHER
    scaled.SOLVER.IMS_PER_BATCH_UNLABELED = (
        cfg.SOLVER.IMS_PER_BATCH_UNLABELED * num_shares // (reference)
    )
    st.BURN_IN_ITERS = round(st.BURN_IN_ITERS / scale)
    st.UNLABELED_DECAY_ITERS = round(st.UNLABELED_DECAY_ITERS / scale)
    st.EMA.MOMENTUM = st.EMA.MOMENTUM**scale
    if frozen:
        scaled.freeze()
    return scaled


def images_in_decay(iteration: int, full: int, max_iter: int, decay_iters: int) -> int:
    """How many unlabeled images a forward pass has, when they become fewer at the end of training.

    A straight line from all of them, `decay_iters` before the end, to none at the end, rounded to
    whole images. It depends on nothing else, so all processes and resumed trainings agree.

    Args:
        iteration: from 0.
        full: images of a forward pass until then.
        max_iter: iterations of the training.
        decay_iters: the last ones, in which there are fewer; 0 for none.
    """
    left = max(max_iter - iteration, 0)
    if left >= decay_iters:
        return full
    # In whole numbers: rounding of fractions might differ from machine to machine.
    return (2 * full * left + decay_iters) // (2 * decay_iters)


def read_unlabeled_decay(cfg: CfgNode, world_size: int) -> Callable[[int], int] | None:
    """From an iteration to the unlabeled images of a forward pass; None if they stay as many.

    Args:
        cfg: the config, scaled to the number of processes.
        world_size: the number of processes.

    Raises:
        ValueError: SOFT_TEACHER.UNLABELED_DECAY_ITERS is negative, or longer than what follows the
            burn-in.
    """
    st, max_iter = cfg.SOFT_TEACHER, cfg.SOLVER.MAX_ITER
    decay_iters, longest = st.UNLABELED_DECAY_ITERS, max_iter - st.BURN_IN_ITERS
    if decay_iters == 0 or not st.ENABLED:
        return None
    if not 0 <= decay_iters <= longest:
        raise ValueError(
            f"SOFT_TEACHER.UNLABELED_DECAY_ITERS is {decay_iters}; it must lie in 0 to {longest}, "
            "the iterations that follow SOFT_TEACHER.BURN_IN_ITERS."
        )
    shares = world_size * cfg.SOLVER.ACCUMULATION_STEPS
    full = cfg.SOLVER.IMS_PER_BATCH_UNLABELED // shares
    return partial(images_in_decay, full=full, max_iter=max_iter, decay_iters=decay_iters)
