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

    Args:
        cfg: the config; it is not changed.
        world_size: k.

    Returns:
        The scaled config, or `cfg` itself when there is nothing to scale.

    Raises:
        ValueError: the images of the recipe cannot be shared out evenly.
    """
    reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference in (0, world_size):
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
    scaled = DefaultTrainer.auto_scale_workers(cfg, world_size)
    frozen = scaled.is_frozen()
    scaled.defrost()
    scale = world_size / reference
    st = scaled.SOFT_TEACHER
    scaled.SOLVER.IMS_PER_BATCH_UNLABELED = (
        cfg.SOLVER.IMS_PER_BATCH_UNLABELED * world_size // (reference)
    )
    st.BURN_IN_ITERS = round(st.BURN_IN_ITERS / scale)
    st.EMA.MOMENTUM = st.EMA.MOMENTUM**scale
    if frozen:
        scaled.freeze()
    return scaled
