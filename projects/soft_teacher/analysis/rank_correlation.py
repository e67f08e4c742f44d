"""Spearman's rank correlation, with the uncertainty that comes from the choice of the images."""

from collections.abc import Callable

import numpy as np

LEVEL = 0.95
"""Share of the resamples that lies inside of an interval."""


class RankedValues:
    """Values that are sorted once and then ranked under many weights.

    Equal values share the mean of their ranks.
    """

    def __init__(self, values: np.ndarray):
        """
        Args:
            values: (B,).
        """
        self._distinct, self._place = np.unique(values, return_inverse=True)

    def __len__(self) -> int:
        return len(self._place)

    def ranks(self, weights: np.ndarray) -> np.ndarray:
        """Ranks (B,), up to a constant, as if each value were there `weights` (B,) times."""
        counts = np.bincount(self._place, weights, minlength=len(self._distinct))
        return (np.cumsum(counts) - counts / 2)[self._place]


def rank_correlation(a: RankedValues, b: RankedValues, weights: np.ndarray | None = None) -> float:
    """Spearman's rho: Pearson's correlation of the ranks.

    Args:
        a, b: B values each.
        weights: (B,), how often each pair counts; None for once.

    Returns:
        -1 to 1; NaN where either has fewer than two distinct values (that count).
    """
    if weights is None:
        weights = np.ones(len(a))
    total = weights.sum()
    if total == 0:
        return float("nan")
    x, y = a.ranks(weights), b.ranks(weights)
    x, y = x - (weights @ x) / total, y - (weights @ y) / total
    spread = np.sqrt((weights @ x**2) * (weights @ y**2))
    return float((weights @ (x * y)) / spread) if spread > 0 else float("nan")


def bootstrap_over_images(
    statistic: Callable[[np.ndarray], list[float]],
    image: np.ndarray,
    num_images: int,
    resamples: int,
    seed: int,
) -> np.ndarray:
    """Statistics of as many images drawn with replacement, again and again.

    Boxes of one image are not independent of each other, so whole images are drawn.

    Args:
        statistic: weights (B,) of the boxes -> numbers.
        image: int (B,), which image a box is of.
        num_images: N; images without a box are among them.
        resamples: how often.
        seed: of the draws.

    Returns:
        (resamples, number of statistics).
    """
    generator = np.random.default_rng(seed)
    drawn = []
    for _ in range(resamples):
        images = generator.integers(num_images, size=num_images)
        times = np.bincount(images, minlength=num_images).astype(float)
        drawn.append(statistic(times[image]))
    return np.array(drawn)


def interval(samples: np.ndarray) -> tuple[float, float] | None:
    """The middle 95 % of bootstrap samples; those that are NaN are left out, None if all are."""
    known = samples[np.isfinite(samples)]
    if len(known) == 0:
        return None
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
