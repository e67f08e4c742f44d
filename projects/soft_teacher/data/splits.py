"""Splits of a COCO file into few labeled and many unlabeled images (sec. 4.1)."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


def choose_labeled(image_ids: Iterable[int], percent: float, fold: int) -> set[int]:
    """Draw the ids of the images that keep their labels, without replacement.

    Depends on the set of ids, not on their order. For one fold, the choice of a smaller
    percentage is part of the choice of a larger one.

    Args:
        image_ids: ids of all images, each its own, at least two.
        percent: share of labeled images, above 0 and below 100.
        fold: seeds the choice.
    """
    if not 0 < percent < 100:
        raise ValueError(f"The percentage is {percent}; it must lie between 0 and 100.")
    ordered = sorted(image_ids)
    count = max(1, int(percent * len(ordered) / 100))
    # The legacy generator is frozen: the same split on every machine and version of numpy.
    chosen = np.random.RandomState(fold).permutation(len(ordered))[:count]
    return {ordered[i] for i in chosen}


def split_name(percent: float, fold: int) -> str:
    """What the official code calls a split."""
    return f"{fold}@{percent:g}"


class SplitWriter:
    """Divides one COCO file in many ways.

    Each image and annotation is turned to text once; a split only puts the texts together. Images
    are written in the order of their ids and annotations in that of images, so the bytes of a
    split do not depend on the order in the file.

    Attributes:
        image_ids: of all images, sorted.
        annotated_ids: of the images with an object (crowds do not count), sorted.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        """
        Args:
            content: of a COCO file. Its lists are emptied on the way, to save memory.

        Raises:
            ValueError: the images cannot be told apart, or there are less than two.
        """
        images, annotations = content["images"], content["annotations"]
        ids = [image["id"] for image in images]
        if len(set(ids)) != len(ids) or len(ids) < 2:
            raise ValueError(
                f"The file lists {len(ids)} images with {len(set(ids))} different ids; splitting "
                "needs two images or more, each with its own id."
            )
        annotations.sort(key=lambda x: x.get("id", 0))
        self.image_ids = sorted(ids)
        self.annotated_ids = sorted(
            {x["image_id"] for x in annotations if not x.get("iscrowd", 0)} & set(ids)
        )
        self._rest = {k: v for k, v in content.items() if k not in ("images", "annotations")}
        self._images = {image["id"]: json.dumps(image) for image in images}
        images.clear()
        self._annotations = defaultdict(list)
        while annotations:
            annotation = annotations.pop()
            self._annotations[annotation["image_id"]].append(json.dumps(annotation))
        for texts in self._annotations.values():
            texts.reverse()

    def write(
        self, labeled_ids: set[int], folder: Path, name: str, keep_annotations: bool = False
    ) -> dict[Path, int]:
        """Write one split into an existing folder.

        Beside the two annotation files, {name}.json and {name}-unlabeled.json, {name}.ids.txt
        lists the labeled ids and {name}.sha256 holds the checksums of the three.

        Args:
            labeled_ids: ids of the images of the labeled part.
            folder: where to.
            name: of the split, file names start with it.
            keep_annotations: whether the unlabeled part keeps its annotations, to measure pseudo
                labels by.

        Returns:
            The number of images by annotation file, the labeled one first.

        Raises:
            ValueError: an id is not in the file.
        """
        unknown = sorted(labeled_ids - self._images.keys())
        if unknown:
            raise ValueError(
                f"{len(unknown)} ids of the split {name} are not in the annotation file, such as "
                f"{unknown[:3]}; take the file that the split was made from."
            )
        labeled = [i for i in self.image_ids if i in labeled_ids]
        unlabeled = [i for i in self.image_ids if i not in labeled_ids]
        paths = [folder / f"{name}{end}" for end in (".json", "-unlabeled.json", ".ids.txt")]
        self._write_part(paths[0], labeled, with_annotations=True)
        self._write_part(paths[1], unlabeled, with_annotations=keep_annotations)
        paths[2].write_text("".join(f"{i}\n" for i in labeled))
        sums = (f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths)
        (folder / f"{name}.sha256").write_text("".join(sums))
        return {paths[0]: len(labeled), paths[1]: len(unlabeled)}

    def _write_part(self, path: Path, ids: list[int], with_annotations: bool) -> None:
        annotations = (x for i in ids for x in self._annotations.get(i, ()))
        with path.open("w") as file:
            file.write(json.dumps(self._rest)[:-1])
            file.write(', "images": [' if self._rest else '"images": [')
            file.write(", ".join(self._images[i] for i in ids))
            file.write('], "annotations": [')
            file.write(", ".join(annotations) if with_annotations else "")
            file.write("]}")
