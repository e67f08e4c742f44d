"""Unreadable unlabeled images: set aside, counted and listed, and training goes on.

A worker that cannot read an image takes the next one of the set in its place, so what a batch
holds depends on the files alone. The sample carries the bad news to the training process, which
logs it once and writes it to a list.
"""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from detectron2.utils.events import get_event_storage, has_event_storage
from torch.utils.data import Dataset

from soft_teacher.data.image_files import ImageError

logger = logging.getLogger(__name__)

# So many unreadable images in a row are no accident: a wrong folder, or a disk that is gone.
MAX_IN_A_ROW = 100

_KEY = "set_aside"


class ReplacingDataset(Dataset):
    """A data set in which the next readable image stands in for an unreadable one.

    Args:
        dataset: asked for by (index, sample seed); its samples are dicts.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, request: tuple[int, int]) -> dict[str, Any]:
        """The sample, with the messages about the images that it replaces, if there are any.

        Raises:
            ImageError: a whole run of images cannot be read.
        """
        index, sample_seed = request
        failures: dict[int, str] = {}
        for step in range(min(len(self), MAX_IN_A_ROW)):
            candidate = (index + step) % len(self)
            try:
                sample = self._dataset[candidate, sample_seed]
            except ImageError as error:
                failures[candidate] = str(error)
            else:
                return {**sample, _KEY: failures} if failures else sample
        raise ImageError(
            f"{len(failures)} unlabeled images in a row cannot be read, the last: "
            f"{failures[candidate]}. Check the folder of the sets in DATASETS.UNLABELED."
        )


class SetAsideRecorder:
    """Iterates over a loader of `ReplacingDataset` samples, and keeps the list of bad images.

    Args:
        loader: yields lists of samples.
        list_file: each unreadable image gets one line in it, also over several runs.
        digest: checksum of the set, an attribute as of `SetLoader`.
    """

    def __init__(
        self, loader: Iterable[list[dict[str, Any]]], list_file: Path, digest: str = ""
    ) -> None:
        self.digest = digest
        self._loader = loader
        self._list_file = list_file
        self._known: set[int] = set()

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for batch in self._loader:
            for sample in batch:
                self._note(sample.pop(_KEY, {}))
            yield batch

    def _note(self, failures: dict[int, str]) -> None:
        new = {index: message for index, message in failures.items() if index not in self._known}
        if not new:
            return
        self._known.update(new)
        self._list_file.parent.mkdir(parents=True, exist_ok=True)
        # Names that are not in UTF-8 stay as they are.
        text = {"encoding": "utf-8", "errors": "surrogateescape"}
        known = self._list_file.read_text(**text) if self._list_file.exists() else ""
        listed = known.splitlines()
        with self._list_file.open("a", **text) as file:
            for message in new.values():
                # A log may be read as UTF-8, whatever an image is called.
                shown = message.encode("utf-8", "backslashreplace").decode("utf-8")
                logger.warning("%s. Another image takes its place", shown)
                if message not in listed:
                    file.write(f"{message}\n")
        if has_event_storage():
            get_event_storage().put_scalar(
                "unreadable_images", len(self._known), smoothing_hint=False
            )
