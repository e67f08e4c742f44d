"""Endless, seekable batches of (index, sample seed) that depend on nothing but their arguments."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from soft_teacher.data.randomness import join_seeds

# Branches of the seed: what is drawn for a pass, a sample and a step never share random bits.
_PASS_BRANCH = 0
_SAMPLE_BRANCH = 1
_STEP_BRANCH = 2


@dataclass(frozen=True)
class _PassLayout:
    """How one pass over the set is cut by the batch borders of the endless stream.

    Attributes:
        head: images that complete a batch begun in the pass before.
        whole: batches that lie entirely inside the pass.
        tail: images that begin a batch completed by the pass after.
    """

    head: int
    whole: int
    tail: int

    @classmethod
    def of(cls, pass_index: int, size: int, batch_size: int) -> "_PassLayout":
        head = min(-pass_index * size % batch_size, size)
        whole, tail = divmod(size - head, batch_size)
        return cls(head, whole, tail)


class SeededBatchSampler(Sampler[list[tuple[int, int]]]):
    """Yields batches of `(index, sample_seed)` without end.

    Passes over the set are laid end to end to one stream of positions: positions `[p*N, (p+1)*N)`
    are a permutation of the `N` images, a pure function of (seed, stream, p). The stream is cut
    into batches, and ranks take them in turn: rank `r` gets, as its `n`-th, batch
    `n * world_size + r`. No image is dropped, repeated within a pass, or seen by two ranks,
    whatever the sizes.

    With groups, batches that lie inside one pass hold one group as far as the numbers allow;
    what is left over fills the batches that straddle two passes and at most one batch inside.

    The upper half of a sample seed is the same for the whole step, on all ranks (see `randomness`).
    A step of one rank may take several batches in turn: as many ranks with one batch each, in the
    same order, would see the very same samples.

    Every call of `iter` starts at `start_batch`; the sampler itself has no state.

    Args:
        size: number of images in the set, at least 1.
        batch_size: images in each batch of this rank, at least 1.
        seed: seed of the run, not negative.
        stream: tells apart samplers of one run that must be independent.
        rank: this process.
        world_size: number of processes.
        groups: 0 or 1 for each image, such as its orientation; None for one group.
        start_batch: batches of this rank that were consumed before. Seeking costs nothing.
        batches_per_step: batches of this rank in one step.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        *,
        seed: int,
        stream: int,
        rank: int = 0,
        world_size: int = 1,
        groups: Sequence[int] | None = None,
        start_batch: int = 0,
        batches_per_step: int = 1,
    ) -> None:
        assert size >= 1, "an empty set cannot be sampled"
        assert batch_size >= 1, batch_size
        assert 0 <= rank < world_size, (rank, world_size)
        assert batches_per_step >= 1, batches_per_step
        assert seed >= 0 and stream >= 0 and start_batch >= 0, (seed, stream, start_batch)
        assert groups is None or len(groups) == size, (len(groups), size)
        self._size = size
        self._batch_size = batch_size
        self._seed = seed
        self._stream = stream
        self._rank = rank
        self._world_size = world_size
        self._groups = np.zeros(size, np.int8) if groups is None else np.asarray(groups, np.int8)
        self._start_batch = start_batch
        self._batches_per_step = batches_per_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        known_pass, order = -1, np.empty(0, np.int64)
        number = self._start_batch
        while True:
            first = (number * self._world_size + self._rank) * self._batch_size
            step_seed = self._draw_seed(_STEP_BRANCH, number // self._batches_per_step)
            batch = []
            for position in range(first, first + self._batch_size):
                pass_index, offset = divmod(position, self._size)
                if pass_index != known_pass:
                    known_pass, order = pass_index, self._order_of_pass(pass_index)
                own_seed = self._draw_seed(_SAMPLE_BRANCH, position)
                batch.append((int(order[offset]), join_seeds(step_seed, own_seed)))
            yield batch
            number += 1

    def _seed_sequence(self, branch: int, number: int) -> np.random.SeedSequence:
        return np.random.SeedSequence(self._seed, spawn_key=(self._stream, branch, number))

    def _draw_seed(self, branch: int, number: int) -> int:
        return int(self._seed_sequence(branch, number).generate_state(1)[0])

    def _order_of_pass(self, pass_index: int) -> np.ndarray:
        """Permutation of all indices, (size,) int64, for one pass."""
        # The legacy generator's methods are frozen, so that a run can be resumed under another
        # version of numpy.
        random = np.random.RandomState(
            np.random.MT19937(self._seed_sequence(_PASS_BRANCH, pass_index))
        )
        layout = _PassLayout.of(pass_index, self._size, self._batch_size)
        batches, rest = self._pure_batches(random)
        # The straddling batches may need one more batch's worth of images than is left over.
        batches, broken = batches[: layout.whole], batches[layout.whole :]
        rest = random.permutation(np.concatenate([rest, *broken]))
        head, rest = rest[: layout.head], rest[layout.head :]
        tail, rest = rest[: layout.tail], rest[layout.tail :]
        mixed = list(rest.reshape(-1, self._batch_size))
        whole = batches + mixed
        whole = [whole[i] for i in random.permutation(len(whole))]
        return np.concatenate([head, *whole, tail])

    def _pure_batches(self, random: np.random.RandomState) -> tuple[list[np.ndarray], np.ndarray]:
        """Random batches of one group each, in random order, and the images left over."""
        batches, rest = [], []
        for group in np.unique(self._groups):
            members = random.permutation(np.flatnonzero(self._groups == group))
            used = len(members) // self._batch_size * self._batch_size
            batches.extend(members[:used].reshape(-1, self._batch_size))
            rest.append(members[used:])
        return [batches[i] for i in random.permutation(len(batches))], np.concatenate(rest)
