"""How much of a batch is image and how much is padding."""

from itertools import islice
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from soft_teacher.data.augmentation import strong_augmentations, weak_augmentations
from soft_teacher.data.loaders import batch_groups
from soft_teacher.data.randomness import seeded_sample
from soft_teacher.data.samplers import SeededBatchSampler


def measure_padding(
    cfg: CfgNode,
    records: list[dict[str, Any]],
    batch_size: int,
    num_batches: int,
    divisibility: int = 32,
) -> dict[str, float]:
    """Real pixels of the views of unlabeled images over those of their padded batches.

    Sizes are drawn as in training; no pixel is touched.

    Args:
        cfg: says how scales are drawn and images grouped.
        records: images, dicts with `width` and `height`.
        batch_size: images of a batch, those that one GPU holds.
        num_batches: how many to draw.
        divisibility: sides of a batch are multiples of this (32 in an FPN).

    Returns:
        "weak" and "strong" -> the share of real pixels; "images" without `divisibility`, both
        views together.
    """
    resizes = {"weak": weak_augmentations(cfg)[0], "strong": strong_augmentations(cfg)[0]}
    sampler = SeededBatchSampler(
        len(records),
        batch_size,
        seed=max(cfg.SEED, 0),
        stream=0,
        groups=batch_groups(cfg, records),
    )
    real = dict.fromkeys(resizes, 0)
    padded, enclosing = dict(real), 0
    for batch in islice(sampler, num_batches):
        sizes = {name: [] for name in resizes}
        for index, sample_seed in batch:
            with seeded_sample(sample_seed):
                for name, resize in resizes.items():
                    sizes[name].append(_size_after(resize, records[index]))
        for name, of_view in sizes.items():
            height, width = np.max(of_view, axis=0)
            real[name] += int(np.prod(of_view, axis=1).sum())
            enclosing += batch_size * int(height * width)
            padded[name] += (
                batch_size * _round_up(height, divisibility) * _round_up(width, divisibility)
            )
    shares = {name: real[name] / padded[name] for name in resizes}
    return {**shares, "images": sum(real.values()) / enclosing}


def _size_after(resize: T.Augmentation, record: dict[str, Any]) -> tuple[int, int]:
    """Height and width of an image once it is resized."""
    # An image of the right shape that takes no memory.
    image = np.broadcast_to(np.uint8(0), (record["height"], record["width"], 3))
    transform = resize.get_transform(image)
    return transform.new_h, transform.new_w


def _round_up(side: int, divisibility: int) -> int:
    return -(-int(side) // divisibility) * divisibility
