from itertools import islice, product

import numpy as np
import pytest

from soft_teacher.data.samplers import SeededBatchSampler


def batches_of_ranks(count, size, batch_size, world_size, **kwargs):
    """The first batches of every rank, as [rank][step]."""
    kwargs = {"seed": 3, "stream": 0, **kwargs}
    return [
        list(
            islice(
                SeededBatchSampler(size, batch_size, rank=rank, world_size=world_size, **kwargs),
                count,
            )
        )
        for rank in range(world_size)
    ]


def global_stream(count, size, batch_size, world_size, **kwargs):
    ranks = batches_of_ranks(count, size, batch_size, world_size, **kwargs)
    return [item for step in zip(*ranks, strict=True) for batch in step for item in batch]


def without_step(batch):
    """Indices and the lower halves of the seeds, which do not depend on what makes up a step."""
    return [(index, seed % 2**32) for index, seed in batch]


def orientations(size, seed):
    return np.random.default_rng(seed).integers(0, 2, size).tolist()


@pytest.mark.parametrize("world_size", range(1, 9))
@pytest.mark.parametrize("grouped", [False, True])
def test_every_pass_holds_every_image_once_whatever_the_sizes(world_size, grouped):
    for size, batch_size in product(range(1, 21), (1, 2, 3, 5, 8)):
        groups = orientations(size, size) if grouped else None
        count = 3 * size // (batch_size * world_size) + 1
        stream = global_stream(count, size, batch_size, world_size, groups=groups)
        indices = [index for index, _ in stream]
        for start in range(0, len(indices) - size + 1, size):
            assert sorted(indices[start : start + size]) == list(range(size))


def test_every_batch_of_every_rank_has_exactly_the_size_asked_for():
    for size, batch_size, world_size in product((1, 4, 7, 20), (1, 3, 8), (1, 3)):
        for batches in batches_of_ranks(6, size, batch_size, world_size):
            assert [len(batch) for batch in batches] == [batch_size] * 6


def test_ranks_never_share_a_position_or_a_seed():
    stream = global_stream(5, size=7, batch_size=3, world_size=4)
    seeds = [seed for _, seed in stream]
    assert len(set(seeds)) == len(seeds) == 5 * 3 * 4


def test_ranks_take_the_batches_of_one_stream_in_turn():
    one = batches_of_ranks(12, 11, 2, 1, groups=orientations(11, 0))[0]
    four = batches_of_ranks(3, 11, 2, 4, groups=orientations(11, 0))
    in_turn = [batch for step in zip(*four, strict=True) for batch in step]
    assert [without_step(batch) for batch in in_turn] == [without_step(batch) for batch in one]


@pytest.mark.parametrize("start", [0, 1, 2, 7, 30])
def test_starting_at_a_batch_continues_the_uninterrupted_stream(start):
    for size, batch_size in product((1, 5, 13), (1, 4)):
        groups = orientations(size, 1)
        whole = batches_of_ranks(start + 4, size, batch_size, 3, groups=groups)
        later = batches_of_ranks(4, size, batch_size, 3, groups=groups, start_batch=start)
        assert later == [batches[start:] for batches in whole]


def test_seeking_far_ahead_reads_only_the_pass_that_is_needed(monkeypatch):
    passes = []
    original = SeededBatchSampler._order_of_pass
    monkeypatch.setattr(
        SeededBatchSampler,
        "_order_of_pass",
        lambda self, number: passes.append(number) or original(self, number),
    )
    next(iter(SeededBatchSampler(10, 2, seed=0, stream=0, start_batch=5 * 10**8)))
    assert passes == [10**8]


def test_two_iterators_of_one_sampler_give_the_same_batches():
    sampler = SeededBatchSampler(9, 2, seed=0, stream=0)
    assert list(islice(sampler, 20)) == list(islice(sampler, 20))


@pytest.mark.parametrize("change", [{"seed": 4}, {"stream": 1}])
def test_another_seed_or_stream_gives_other_orders_and_other_sample_seeds(change):
    base = global_stream(20, 20, 2, 1)
    other = global_stream(20, 20, 2, 1, **change)
    assert [index for index, _ in base] != [index for index, _ in other]
    assert not {seed for _, seed in base} & {seed for _, seed in other}


def test_orders_differ_between_passes_and_all_seeds_fit_32_bits():
    stream = global_stream(8, 40, 20, 1)
    orders = {tuple(index for index, _ in stream[i : i + 40]) for i in range(0, 160, 40)}
    assert len(orders) == 4
    assert all(0 <= seed < 2**64 and isinstance(seed, int) for _, seed in stream)


def test_every_image_is_as_likely_at_every_place_of_a_pass():
    stream = global_stream(7 * 2000, 7, 1, 1)
    counts = np.zeros((7, 7))
    for position, (index, _) in enumerate(stream):
        counts[index, position % 7] += 1
    assert np.abs(counts / (2000 / 7) - 1).max() < 0.25


def test_images_of_a_small_orientation_may_come_at_every_place_of_a_pass():
    groups = [0] * 5 + [1] * 2
    stream = global_stream(7 * 300, 7, 2, 1, groups=groups)
    places = {position % 7 for position, (index, _) in enumerate(stream) if groups[index]}
    assert places == set(range(7))


def mixed_batches(size, batch_size, groups, passes):
    """Batches of two orientations in whole passes, and those of them inside one pass."""
    batches = batches_of_ranks(passes * size // batch_size, size, batch_size, 1, groups=groups)[0]
    inside, straddling = 0, 0
    for number, batch in enumerate(batches):
        if len({groups[index] for index, _ in batch}) > 1:
            first = number * batch_size
            if first // size == (first + batch_size - 1) // size:
                inside += 1
            else:
                straddling += 1
    return inside, straddling


def test_batches_inside_a_pass_hold_one_orientation_but_for_at_most_one():
    for size, batch_size, seed in product((12, 31, 50), (2, 3, 4), range(5)):
        inside, _ = mixed_batches(size, batch_size, orientations(size, seed), passes=12)
        assert inside <= 12


def test_no_batch_is_mixed_where_the_numbers_allow_it():
    assert mixed_batches(24, 4, [0] * 16 + [1] * 8, passes=5) == (0, 0)


def test_a_lone_image_of_one_orientation_comes_once_in_every_pass():
    groups = [1] + [0] * 9
    indices = [index for index, _ in global_stream(50, 10, 4, 1, groups=groups)]
    assert [indices[i : i + 10].count(0) for i in range(0, 200, 10)] == [1] * 20


def test_with_full_groups_batches_of_both_orientations_come_in_random_order():
    groups = [0] * 20 + [1] * 20
    stream = global_stream(10, 40, 4, 1, groups=groups)
    kinds = [groups[stream[i][0]] for i in range(0, 40, 4)]
    assert kinds != sorted(kinds) and kinds != sorted(kinds, reverse=True)


def test_the_upper_half_of_the_seed_is_shared_by_a_step_on_all_ranks_and_by_no_other():
    ranks = batches_of_ranks(6, size=7, batch_size=3, world_size=4)
    steps = [{seed >> 32 for rank in ranks for _, seed in rank[step]} for step in range(6)]
    assert all(len(step) == 1 for step in steps) and len(set.union(*steps)) == 6
    # A run on fewer processes with the same batch in all draws the same.
    one = batches_of_ranks(6, size=7, batch_size=12, world_size=1)[0]
    assert [{seed >> 32 for _, seed in batch} for batch in one] == steps
    assert [seed for batch in one for _, seed in batch] == [
        seed for step in range(6) for rank in ranks for _, seed in rank[step]
    ]
