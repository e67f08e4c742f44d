"""A file that long work is written to as it is done, and taken up from when it was cut off."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Journal:
    """Entries of some work, in order, one JSON line each.

    An entry counts from when its line is complete. What a process that was killed has left of a
    line is cut off.

    Attributes:
        num_entries: entries so far.
    """

    def __init__(self, path: Path, fingerprint: str):
        """Take up the file, or begin it anew if it is of other work or not there.

        Args:
            path: of the file.
            fingerprint: tells apart work with different results.
        """
        self._path = path
        self._header = json.dumps({"fingerprint": fingerprint}).encode() + b"\n"
        self.num_entries, length = self._count_complete()
        if length == 0:
            self._path.write_bytes(self._header)
        else:
            os.truncate(self._path, length)

    def _count_complete(self) -> tuple[int, int]:
        """Number of complete entries and the length of the file up to there; 0 of other work."""
        if not self._path.is_file():
            return 0, 0
        with self._path.open("rb") as file:
            if file.readline() != self._header:
                return 0, 0
            number, length = 0, len(self._header)
            for line in file:
                if not _is_complete(line):
                    break
                number, length = number + 1, length + len(line)
        return number, length

    def append(self, entry: Any) -> None:
        """Write one entry; when this returns, the end of the process does not harm it."""
        with self._path.open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")
        self.num_entries += 1

    def __iter__(self) -> Iterator[Any]:
        with self._path.open("rb") as file:
            next(file)
            yield from map(json.loads, file)

    def remove(self) -> None:
        """Delete the file; the work is done and kept elsewhere."""
        self._path.unlink()


def _is_complete(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n")
