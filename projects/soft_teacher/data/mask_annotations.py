"""Whether a set has the masks that a model with masks learns from or is evaluated by."""

from collections.abc import Iterator
from typing import Any

from soft_teacher.data.coco_file import Record


def check_masks(records: list[Record], which: str, mask_format: str | None = None) -> None:
    """Make sure that every object has a mask that can be used; crowds do not count.

    Args:
        records: in Detectron2's dataset format.
        which: name of the set, for the message.
        mask_format: INPUT.MASK_FORMAT, for sets to learn from; None if both kinds of masks do.

    Raises:
        ValueError: one has not.
    """
    for record, annotation in _objects(records):
        segmentation = annotation.get("segmentation")
        place = f"{which}: an object in {record['file_name']}"
        if not segmentation:
            raise ValueError(
                f"{place} has no segmentation, but MODEL.MASK_ON is True. Add the masks, leave the "
                "object out of the file, or set MODEL.MASK_ON to False."
            )
        if not isinstance(segmentation, dict):
            continue
        if mask_format == "polygon":
            raise ValueError(
                f"{place} has its mask as a run-length code, not as polygons; set "
                "INPUT.MASK_FORMAT to 'bitmask', which takes both."
            )
        stated = [record["height"], record["width"]] if "height" in record else None
        if stated not in (None, list(segmentation["size"])):
            raise ValueError(
                f"{place}, which has {stated[1]} x {stated[0]} pixels, has a mask for "
                f"{segmentation['size'][1]} x {segmentation['size'][0]}; correct the size of one "
                "of them in the annotation file."
            )


def _objects(records: list[Record]) -> Iterator[tuple[Record, dict[str, Any]]]:
    for record in records:
        for annotation in record["annotations"]:
            if not annotation.get("iscrowd", 0):
                yield record, annotation
