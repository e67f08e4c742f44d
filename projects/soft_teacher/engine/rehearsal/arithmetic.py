"""The arithmetic of a recipe: what its numbers amount to over a whole training."""

from dataclasses import dataclass

from detectron2.config import CfgNode

from soft_teacher.engine.rehearsal.set_sizes import total_size


@dataclass(frozen=True)
class Recipe:
    """What a config amounts to, on as many GPUs as it is made for.

    Attributes:
        gpus: the number that its numbers are for; None if they are for any.
        labeled, unlabeled: images of one step, over all GPUs; no unlabeled ones if supervised.
        iterations: steps of the optimizer.
        burn_in: of these, those without unlabeled images at the start.
        decay: and those at the end in which unlabeled images become fewer, until there is none.
        warmup: iterations until the learning rate is reached.
        drops: iterations at which it drops.
        learning_rate: the highest.
        labeled_set, unlabeled_set: images of the sets; None if they are not known.
        ema_horizon: steps over which the teacher averages; None without a moving average.
    """

    gpus: int | None
    labeled: int
    unlabeled: int
    iterations: int
    burn_in: int
    decay: int
    warmup: int
    drops: tuple[int, ...]
    learning_rate: float
    labeled_set: int | None
    unlabeled_set: int | None
    ema_horizon: float | None

    @property
    def images(self) -> int:
        """That the student sees in a step."""
        return self.labeled + self.unlabeled

    @property
    def learning_rate_per_image(self) -> float:
        return self.learning_rate / self.images

    @property
    def labeled_passes(self) -> float | None:
        """How often each labeled image is seen."""
        if self.labeled_set is None:
            return None
        return self.iterations * self.labeled / self.labeled_set

    @property
    def unlabeled_passes(self) -> float | None:
        """How often each unlabeled image is seen; None if there is none."""
        if self.unlabeled_set is None or not self.unlabeled:
            return None
        full = self.iterations - self.burn_in - self.decay / 2
        return full * self.unlabeled / self.unlabeled_set


def read_recipe(cfg: CfgNode) -> Recipe:
    """What a config amounts to; `scale_to_world_size` makes it that of another number of GPUs."""
    solver, st = cfg.SOLVER, cfg.SOFT_TEACHER
    multi_step = solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR"
    return Recipe(
        gpus=solver.REFERENCE_WORLD_SIZE or None,
        labeled=solver.IMS_PER_BATCH,
        unlabeled=solver.IMS_PER_BATCH_UNLABELED if st.ENABLED else 0,
        iterations=solver.MAX_ITER,
        burn_in=st.BURN_IN_ITERS if st.ENABLED else 0,
        decay=st.UNLABELED_DECAY_ITERS if st.ENABLED else 0,
        warmup=solver.WARMUP_ITERS,
        drops=tuple(solver.STEPS) if multi_step else (),
        learning_rate=solver.BASE_LR,
        labeled_set=total_size(cfg.DATASETS.TRAIN),
        unlabeled_set=total_size(cfg.DATASETS.UNLABELED),
        ema_horizon=1 / (1 - st.EMA.MOMENTUM) if st.EMA.ENABLED and st.EMA.MOMENTUM < 1 else None,
    )
