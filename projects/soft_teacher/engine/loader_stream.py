"""A data loader as an endless stream that knows how many batches were taken from it."""

import logging
from collections.abc import Callable, Iterable, Iterator

logger = logging.getLogger(__name__)


class LoaderStream:
    """Iterates over a loader and counts the batches that were consumed.

    Workers read ahead, so a loader's own position says nothing about training. This count
    does; it is saved, and after a restore the loader is rebuilt to start right behind it.
    """

    def __init__(
        self,
        build: Callable[[int], Iterable],
        digest_of: Callable[[Iterable], str] | None = None,
        *,
        sets: str = "",
        accepts_changes: bool = False,
    ):
        """
        Args:
            build: makes the loader, given the number of batches to leave out at its start.
            digest_of: a checksum of the set that a loader made by `build` loads; after a restore
                it must be the same. None if that need not be known.
            sets: the key that names what is loaded, for messages.
            accepts_changes: start at the beginning of a set that is another one after a restore,
                instead of raising a ValueError.
        """
        self._build = build
        self._digest_of = digest_of
        self._sets = sets
        self._accepts_changes = accepts_changes
        self._iterator: Iterator | None = None
        self._digest: str | None = None
        self.num_consumed = 0

    def __iter__(self) -> "LoaderStream":
        return self

    def open(self) -> None:
        """Build the loader, unless it is there; on all processes together, as loaders agree.

        Raises:
            ValueError: after a restore, the set is not what it was, and this is not accepted.
        """
        if self._iterator is not None:
            return
        loader = self._build(self.num_consumed)
        if self._digest_of is not None:
            digest = self._digest_of(loader)
            if self._digest not in (None, digest):
                loader = self._start_over()
            self._digest = digest
        self._iterator = iter(loader)

    def _start_over(self) -> Iterable:
        change = (
            f"The sets in {self._sets} hold other images or annotations than when the checkpoint "
            "was saved"
        )
        if not self._accepts_changes:
            raise ValueError(
                f"{change}. Resume with those that were trained on, or set "
                "SOFT_TEACHER.RESUME_WITH_CHANGES to True to start at the beginning of the new "
                "ones, or start from the weights (MODEL.WEIGHTS) in another OUTPUT_DIR."
            )
        logger.warning(f"Resuming with a change: {change}; they are read from their beginning")
        self.num_consumed = 0
        return self._build(0)

    def __next__(self):
        self.open()
        batch = next(self._iterator)
        self.num_consumed += 1
        return batch

    def state_dict(self) -> dict[str, int | str | None]:
        return {"num_consumed": self.num_consumed, "digest": self._digest}

    def load_state_dict(self, state: dict[str, int | str | None]) -> None:
        self.num_consumed, self._digest = state["num_consumed"], state["digest"]
        self._iterator = None
