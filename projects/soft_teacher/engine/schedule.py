"""Scaling a recipe to the number of processes it runs on."""

from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer


def scale_to_world_size(cfg: CfgNode, world_size: int) -> CfgNode:
    """Detectron2's linear scaling rule, extended to what Soft Teacher adds.

    A config with SOLVER.REFERENCE_WORLD_SIZE = w holds the numbers for w GPUs. On k GPUs, with
    s = k / w, both image counts and the learning rate are multiplied by s; the length of training,
    its steps, warmup, burn-in and the periods of evaluation and checkpoints are divided by it. So
    each GPU works on as many images, and training sees as many in all. The share of the teacher
    kept in each update becomes MOMENTUM ** s: the average spans as many images.

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
    st.EMA.MOMENTUM = st.EMA.MOMENTUM**scale
    if frozen:
        scaled.freeze()
    return scaled
