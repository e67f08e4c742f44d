"""Rows that masks name, for several images with a single wait of the host for the device."""

import torch
from torch import Tensor


def rows_where(masks: list[Tensor]) -> list[Tensor]:
    """Of each mask the rows where it holds, ascending: what `nonzero` gives for each by itself.

    `nonzero`, and indexing by a mask, have to tell the host how many rows there are, and on a GPU
    the host waits for that. Here it asks once for all masks.

    Args:
        masks: one or more bool (R_i,).

    Returns:
        int64 tensors.
    """
    counts = torch.stack([x.sum() for x in masks]).tolist()
    # A stable sort that puts these rows first leaves them in order.
    return [
        torch.argsort((~x).to(torch.uint8), stable=True)[:n]
        for x, n in zip(masks, counts, strict=True)
    ]
