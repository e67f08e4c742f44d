"""The same image twice: within a set, and in sets that should have nothing in common."""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from soft_teacher.data.start_checks import shared_images


@dataclass(frozen=True)
class SharedImages:
    """Images of a second list that a first one has too; each counts once, where it fits first.

    Attributes:
        same_path: "second file".
        same_content: "second file = first file", for copies.
        same_looks: "second file", of the same id, file name and size, but other bytes.
    """

    same_path: list[str]
    same_content: list[str]
    same_looks: list[str]


def copies(file_names: Sequence[str], digests: Sequence[bytes]) -> list[Counter[str]]:
    """Groups of images of the same bytes.

    Args:
        file_names: paths; one that a set lists under several ids comes several times.
        digests: of the files' bytes; empty ones are passed over.

    Returns:
        Path -> how often it comes, for each group of more than one image.
    """
    groups = defaultdict(Counter)
    for name, digest in zip(file_names, digests, strict=True):
        if digest:
            groups[digest][name] += 1
    return [group for group in groups.values() if group.total() > 1]


def find_shared_images(
    first: list[dict[str, Any]],
    first_digests: list[bytes],
    second: list[dict[str, Any]],
    second_digests: list[bytes],
) -> SharedImages:
    """Compare two lists of images by path, content, and what the files say of them.

    Args:
        first, second: records, see `start_checks.shared_images`.
        first_digests, second_digests: of the files' bytes, empty where unknown.
    """
    paths = {os.path.realpath(record["file_name"]) for record in first}
    by_digest = {d: r["file_name"] for r, d in zip(first, first_digests, strict=True) if d}
    alike = set(shared_images(first, second))
    shared = SharedImages([], [], [])
    for record, digest in zip(second, second_digests, strict=True):
        name = record["file_name"]
        if os.path.realpath(name) in paths:
            shared.same_path.append(name)
        elif digest in by_digest:
            shared.same_content.append(f"{name} = {by_digest[digest]}")
        elif name in alike:
            shared.same_looks.append(name)
    return shared
