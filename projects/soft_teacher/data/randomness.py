"""Augmentations that draw from numpy's global generator, made functions of a seed.

A sample seed has 64 bits. The lower half belongs to the sample alone; the upper half is shared by
all samples of one training step, on all processes, for what is to be drawn once for all of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

_HALF = 32
_step_seed: ContextVar[int] = ContextVar("step_seed")
# Of blocks that have ended; blocks inside each other need one each.
_spare_generators: list[np.random.MT19937] = []


def join_seeds(step_seed: int, own_seed: int) -> int:
    """The sample seed of two seeds of 0 to 2**32 - 1."""
    return step_seed << _HALF | own_seed


@contextmanager
def seeded_sample(sample_seed: int) -> Iterator[None]:
    """Let all draws inside the block, also those of `drawn_for_step`, depend on the seed alone.

    Args:
        sample_seed: 0 to 2**64 - 1, from `join_seeds`.
    """
    token = _step_seed.set(sample_seed >> _HALF)
    try:
        with seeded_numpy(sample_seed % 2**_HALF):
            yield
    finally:
        _step_seed.reset(token)


@contextmanager
def drawn_for_step(number: int) -> Iterator[None]:
    """Inside `seeded_sample`: draws that all samples of a training step have in common.

    Args:
        number: tells apart several such draws of one step, such as those of two views.
    """
    with seeded_numpy((_step_seed.get() + number) % 2**_HALF):
        yield


@contextmanager
def seeded_numpy(seed: int) -> Iterator[None]:
    """Seed numpy's global legacy generator inside the block, and restore it afterwards.

    Detectron2's augmentations draw from that generator. What surrounds the block neither sees
    nor influences what is drawn in it; but the second of two normal values that numpy makes at
    once, and keeps for the next call of `numpy.random.randn`, is lost.

    Args:
        seed: 0 to 2**32 - 1.
    """
    # Another generator in its place: to copy the state of the one that is there, and back, takes
    # forty times as long.
    before = np.random.get_bit_generator()
    own = _spare_generators.pop() if _spare_generators else np.random.MT19937()
    np.random.set_bit_generator(own)
    try:
        np.random.seed(seed)
        yield
    finally:
        np.random.set_bit_generator(before)
        _spare_generators.append(own)
