"""Groups of images of like shape, which fill a batch with little padding."""

from typing import Any

import numpy as np


def aspect_groups(records: list[dict[str, Any]], num_groups: int) -> list[int]:
    """The group of each image, by its shape.

    Args:
        records: dicts with `width` and `height`, in pixels, where they are known.
        num_groups: 2 tells upright images from others, as Detectron2 does; more make as many
            groups of like aspect ratio and about the same size. Images of one ratio stay together,
            so there may be fewer.

    Returns:
        A number for each image. With two groups those of unknown size count as not upright, else
        they are a group of their own.
    """
    sides = [(x.get("width", 0), x.get("height", 0)) for x in records]
    if num_groups == 2:
        return [int(width < height) for width, height in sides]
    known = [width > 0 and height > 0 for width, height in sides]
    ratios = np.array([w / h if k else np.nan for (w, h), k in zip(sides, known, strict=True)])
    if not any(known):
        return [0] * len(records)
    shares = np.arange(1, num_groups) / num_groups
    borders = np.unique(np.quantile(ratios[known], shares, method="lower"))
    groups = np.searchsorted(borders, ratios, side="left")
    return np.where(known, groups, num_groups).tolist()
