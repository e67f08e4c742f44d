"""A data loader as an endless stream that knows how many batches were taken from it."""

from collections.abc import Callable, Iterable, Iterator


class LoaderStream:
    """Iterates over a loader and counts the batches that were consumed.

    Workers read ahead, so a loader's own position says nothing about training. This count
    does; it is saved, and after a restore the loader is rebuilt to start right behind it.
    """

    def __init__(self, build: Callable[[int], Iterable]):
        """
        Args:
            build: makes the loader, given the number of batches to leave out at its start.
        """
        self._build = build
        self._iterator: Iterator | None = None
        self.num_consumed = 0

    def __iter__(self) -> "LoaderStream":
        return self

    def open(self) -> None:
        """Build the loader, unless it is there; on all processes together, as loaders agree."""
        if self._iterator is None:
            self._iterator = iter(self._build(self.num_consumed))

    def __next__(self):
        self.open()
        batch = next(self._iterator)
        self.num_consumed += 1
        return batch

    def state_dict(self) -> dict[str, int]:
        return {"num_consumed": self.num_consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.num_consumed = state["num_consumed"]
        self._iterator = None
