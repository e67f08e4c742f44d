"""All processes of a run must have read the same data."""

import hashlib
import os
from typing import Any

import numpy as np
from detectron2.utils import comm


def records_digest(records: list[dict[str, Any]]) -> str:
    """A checksum of images, sizes, boxes and classes, in order.

    Of paths only the file's name counts: machines may keep the same data in different places.
    """
    digest = hashlib.sha256()
    for record in records:
        size = (record.get("height"), record.get("width"))
        name = os.path.basename(record["file_name"])
        digest.update(repr((record["image_id"], name, size)).encode("utf-8", "surrogateescape"))
        objects = record.get("annotations", ())
        numbers = [(*x["bbox"], x["category_id"], x.get("iscrowd", 0)) for x in objects]
        digest.update(np.array(numbers, np.float64).tobytes())
    return digest.hexdigest()


def check_same_on_all_ranks(records: list[dict[str, Any]], which: str) -> str:
    """Compare a set over all processes, which all call this.

    Args:
        records: what this process has read.
        which: name of the set, for the message.

    Returns:
        The checksum of the records.

    Raises:
        ValueError: on every process, if any two differ.
    """
    digest = records_digest(records)
    facts = comm.all_gather((len(records), digest))
    if len(set(facts)) > 1:
        counts = ", ".join(f"process {i}: {n} images, {d[:12]}" for i, (n, d) in enumerate(facts))
        raise ValueError(
            f"The {which} differ between processes ({counts}). Give all machines the same "
            "annotation files and image folders."
        )
    return digest
