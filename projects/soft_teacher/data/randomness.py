"""Augmentations that draw from numpy's global generator, made functions of a seed."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def seeded_numpy(seed: int) -> Iterator[None]:
    """Seed numpy's global legacy generator inside the block, and restore it afterwards.

    Detectron2's augmentations draw from that generator. What surrounds the block neither sees
    nor influences what is drawn in it.

    Args:
        seed: 0 to 2**32 - 1.
    """
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
