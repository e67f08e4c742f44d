"""Spearman's rank correlation and its intervals, against definitions written out."""

import math

import numpy as np
import pytest

from soft_teacher.analysis.rank_correlation import (
    RankedValues,
    bootstrap_over_images,
    interval,
    rank_correlation,
)


def rho(x, y, weights=None):
    return rank_correlation(RankedValues(np.array(x)), RankedValues(np.array(y)), weights)


def rho_by_counting(x, y):
    """Pearson's correlation of ranks that are found by comparing all pairs."""
    ranks = [[sum(b < a for b in v) + (sum(b == a for b in v) + 1) / 2 for a in v] for v in (x, y)]
    return np.corrcoef(ranks)[0, 1]


def tied_values(seed, count=40):
    """Two related columns of whole numbers, most of them several times there."""
    random = np.random.default_rng(seed)
    x = random.integers(0, 12, count)
    return x, x + random.integers(-6, 7, count)


@pytest.mark.parametrize("seed", range(10))
def test_it_equals_the_definition_with_ties(seed):
    x, y = tied_values(seed)
    assert rho(x, y) == pytest.approx(rho_by_counting(x, y))


def test_it_equals_scipy():
    stats = pytest.importorskip("scipy.stats")
    for seed in range(10):
        x, y = tied_values(seed, 300)
        assert rho(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)


def test_any_rising_curve_is_one_and_any_falling_one_minus_one():
    x = np.random.default_rng(0).normal(size=20)
    assert rho(x, np.exp(x)) == pytest.approx(1)
    assert rho(x, -(x**3)) == pytest.approx(-1)


@pytest.mark.parametrize("seed", range(5))
def test_weights_count_a_pair_several_times_or_not_at_all(seed):
    x, y = tied_values(seed)
    times = np.random.default_rng(seed).integers(0, 4, len(x))
    repeated = rho_by_counting(np.repeat(x, times), np.repeat(y, times))
    assert rho(x, y, times.astype(float)) == pytest.approx(repeated)


def test_without_two_different_values_there_is_no_correlation():
    assert math.isnan(rho([], []))
    assert math.isnan(rho([1.0], [2.0]))
    assert math.isnan(rho([1, 1, 1], [1, 2, 3]))
    assert math.isnan(rho([1, 2, 3], [1, 2, 3], np.zeros(3)))


def test_whole_images_are_drawn_and_the_seed_decides_which():
    image = np.array([0, 0, 1, 3, 3, 3])
    seen = bootstrap_over_images(list, image, 4, resamples=200, seed=5)
    assert (seen[:, 0] == seen[:, 1]).all()
    assert (seen[:, 3] == seen[:, 4]).all()
    # Image 2 has no box, so the others are drawn three times of four on average.
    drawn = seen[:, [0, 2, 3]].sum(axis=1)
    assert drawn.min() < 3 and drawn.max() == 4
    assert drawn.mean() == pytest.approx(3, abs=0.2)
    again = bootstrap_over_images(list, image, 4, resamples=200, seed=5)
    assert (seen == again).all()
    assert (seen != bootstrap_over_images(list, image, 4, resamples=200, seed=6)).any()


def test_the_interval_is_the_middle_of_what_is_known():
    samples = np.append(np.random.default_rng(0).permutation(1001), [np.nan, np.nan])
    assert interval(samples) == pytest.approx((25, 975))
    assert interval(np.array([np.nan])) is None
