"""Files that have their name only when they are complete."""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

TEMPORARY_SUFFIX = ".tmp"


@contextlib.contextmanager
def open_atomically(path: str, mode: str = "wb") -> Iterator[IO]:
    """Open a file that replaces `path` when the block ends well, and else never was.

    Whatever happens meanwhile, also a crash of the machine, `path` is either what it was before
    or complete: the content is on the disk before the name is.

    Args:
        path: of a local file.
        mode: "wb" or "w".

    Raises:
        OSError: the file cannot be written; the message says what to do.
    """
    temporary = path + TEMPORARY_SUFFIX
    failures: list[OSError] = []
    try:
        with io.BufferedWriter(_ObservedFile(temporary, failures)) as f:
            stream = f if mode == "wb" else io.TextIOWrapper(f, encoding="utf-8")
            yield stream
            stream.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        _sync_folder(os.path.dirname(path) or ".")
    except (OSError, RuntimeError) as error:
        # torch.save may hide what the system said behind a RuntimeError of its own.
        cause = failures[0] if failures else error
        if not isinstance(cause, OSError):
            raise
        raise OSError(
            cause.errno,
            f"Cannot write {path}: {cause.strerror or cause}. What was saved before is as it was. "
            "See that the folder exists, may be written to and has space left; then go on with "
            "--resume",
        ) from error
    finally:
        # Nothing is left here if all went well.
        with contextlib.suppress(OSError):
            os.unlink(temporary)


class _ObservedFile(io.FileIO):
    """A new file that remembers the errors of writing to it."""

    def __init__(self, path: str, failures: list[OSError]):
        super().__init__(path, "w")
        self._failures = failures

    def write(self, data: bytes | memoryview) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self._failures.append(error)
            raise


def _sync_folder(folder: str) -> None:
    """Bring the names in a folder to the disk, as os.fsync does with a file's content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: str) -> list[Path]:
    """Delete what writers of checkpoints that were killed have left, and return it."""
    leftovers = [
        path
        for name in ("model_*.pth", "last_checkpoint")
        for path in sorted(Path(folder).glob(name + TEMPORARY_SUFFIX))
    ]
    for path in leftovers:
        path.unlink()
    return leftovers


class AtomicWrites:
    """A path manager, such as Detectron2's, whose files are written atomically."""

    def __init__(self, path_manager: Any):
        self._path_manager = path_manager

    def open(self, path: str, mode: str = "r") -> contextlib.AbstractContextManager[IO]:
        """Open a file; the names of those that are written must be local."""
        if mode in ("w", "wb"):
            return open_atomically(path, mode)
        return self._path_manager.open(path, mode)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._path_manager, name)
