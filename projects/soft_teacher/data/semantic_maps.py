"""Maps of semantic labels, one for each labeled image, for HTC's semantic branch.

A map is an image file of one channel with the size of its image: 0 to L - 1 are labels, as in
COCO-stuff's `stuffthingmaps`, and 255 is a pixel without one.
"""

import os
from dataclasses import dataclass
from typing import Any

import cv2
import torch
from detectron2.config import CfgNode
from torch import Tensor

from soft_teacher.data.geometry import warp
from soft_teacher.data.image_files import ImageError, read_index_image

FILE = "sem_seg_file_name"
"""Of a record: its map's file; Detectron2's name for it."""
IGNORED = 255


def name_semantic_maps(records: list[dict[str, Any]], cfg: CfgNode) -> None:
    """Add the file of its map to each record that does not name one, if maps are wanted.

    Raises:
        ValueError: a map is missing, or nothing says where it is.
    """
    if not cfg.MODEL.ROI_HTC.SEMANTIC_ON:
        return
    root = cfg.DATASETS.SEMANTIC_ROOT
    for record in records:
        if FILE not in record:
            if not root:
                raise ValueError(
                    "MODEL.ROI_HTC.SEMANTIC_ON is True, but nothing names the maps of semantic "
                    "labels of the labeled images; set DATASETS.SEMANTIC_ROOT to their folder, or "
                    "the key to False."
                )
            stem = os.path.splitext(os.path.basename(record["file_name"]))[0]
            record[FILE] = os.path.join(root, f"{stem}.png")
    missing = [x[FILE] for x in records if not os.path.isfile(x[FILE])]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(records)} labeled images have no map of semantic labels, "
            f"such as {missing[0]}; correct DATASETS.SEMANTIC_ROOT, or set "
            "MODEL.ROI_HTC.SEMANTIC_ON to False."
        )


@dataclass(frozen=True)
class SemanticMapReader:
    """Makes the map of a view.

    Attributes:
        num_classes: L, see MODEL.ROI_HTC.SEMANTIC_NUM_CLASSES.
        max_pixels: of a map that is decoded, see INPUT.MAX_PIXELS.
    """

    num_classes: int
    max_pixels: int

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "SemanticMapReader | None":
        """None if no maps are wanted."""
        htc = cfg.MODEL.ROI_HTC
        if not htc.SEMANTIC_ON:
            return None
        return cls(htc.SEMANTIC_NUM_CLASSES, cfg.INPUT.MAX_PIXELS)

    def __call__(self, record: dict[str, Any], view: dict[str, Any]) -> Tensor:
        """Read a map and warp it once, by nearest neighbor and the matrix of a view.

        Args:
            record: names the file, see `name_semantic_maps`.
            view: of the record, see `make_view`; height and width of its original are the map's.

        Returns:
            uint8 (H, W) of the view; `IGNORED` where it shows nothing of the image.

        Raises:
            ImageError: the file cannot be read, is of another size, or holds other labels.
        """
        labels = read_index_image(record[FILE], self.max_pixels)
        if labels.shape != (view["height"], view["width"]):
            raise ImageError(
                f"The map of semantic labels {record[FILE]} has {labels.shape[1]} x "
                f"{labels.shape[0]} pixels, its image {view['width']} x {view['height']}."
            )
        unknown = labels[(labels >= self.num_classes) & (labels != IGNORED)]
        if len(unknown):
            raise ImageError(
                f"The map of semantic labels {record[FILE]} has the label {unknown[0]}, but "
                f"MODEL.ROI_HTC.SEMANTIC_NUM_CLASSES is {self.num_classes}: it may hold 0 to "
                f"{self.num_classes - 1}, and {IGNORED} for pixels without a label."
            )
        size = tuple(view["image"].shape[1:])
        return torch.from_numpy(warp(labels, view["matrix"], size, IGNORED, cv2.INTER_NEAREST))
