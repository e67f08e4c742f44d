"""Maps of semantic labels on their way to the heads: with the images, padded like them.

Shape shorthand: N images of H x W pixels, padding included; h_i x w_i those of image i.
"""

import torch
from detectron2.modeling import Backbone
from detectron2.structures import ImageList
from torch import Tensor

from soft_teacher.modeling.semantic_head import IGNORED

LABELS = "sem_seg"
"""Key of a view's map of labels, uint8 (h_i, w_i); Detectron2's name for it."""


class LabeledImages(ImageList):
    """Images of a batch with their maps of labels.

    Attributes:
        sem_seg: uint8 (N, H, W); `IGNORED` in the padding.
    """

    def __init__(self, images: ImageList, sem_seg: Tensor):
        super().__init__(images.tensor, images.image_sizes)
        self.sem_seg = sem_seg


def with_labels(
    images: ImageList, views: list[dict], backbone: Backbone, device: torch.device
) -> ImageList:
    """The images, and, if all views have one, their maps.

    Args:
        images: of the views, as the detector prepared them.
        views: N views.
        backbone: by which the images were padded.
        device: of the images.
    """
    if not all(LABELS in x for x in views):
        return images
    maps = ImageList.from_tensors(
        [x[LABELS].to(device) for x in views],
        backbone.size_divisibility,
        pad_value=IGNORED,
        padding_constraints=backbone.padding_constraints,
    )
    return LabeledImages(images, maps.tensor)


def labels_of(images: ImageList) -> Tensor:
    """Maps uint8 (N, H, W) of images.

    Raises:
        ValueError: they have none.
    """
    if not isinstance(images, LabeledImages):
        raise ValueError(
            "MODEL.ROI_HTC.SEMANTIC_ON is True, but the labeled images come without maps of "
            "semantic labels; name their folder in DATASETS.SEMANTIC_ROOT, or set the key to False."
        )
    return images.sem_seg
