"""What is wrong with a data set, counted by kind, with a few examples of each."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

NUM_EXAMPLES = 5


@dataclass
class Problem:
    """One kind of problem.

    Attributes:
        count: how often it was met.
        examples: the first places where it was met.
    """

    count: int = 0
    examples: list[str] = field(default_factory=list)


class Problems:
    """Counts problems by kind, in the order in which the kinds came up."""

    def __init__(self) -> None:
        self._by_kind: dict[str, Problem] = {}

    def note(self, kind: str, place: str) -> None:
        """Count one problem.

        Args:
            kind: what is wrong and what follows, such as "boxes without area, left out".
            place: where, such as "annotation 3 of image 7".
        """
        problem = self._by_kind.setdefault(kind, Problem())
        problem.count += 1
        if problem.count <= NUM_EXAMPLES:
            problem.examples.append(place)

    def __bool__(self) -> bool:
        return bool(self._by_kind)

    def items(self) -> Iterator[tuple[str, Problem]]:
        """Kinds and what is known of them."""
        return iter(self._by_kind.items())

    def warn(self, logger: logging.Logger, where: str) -> None:
        """Log one line a kind.

        Args:
            logger: to log with.
            where: the data set or file.
        """
        for kind, problem in self.items():
            examples = "; ".join(problem.examples)
            more = "; ..." if problem.count > len(problem.examples) else ""
            logger.warning("%s: %d %s (%s%s)", where, problem.count, kind, examples, more)
