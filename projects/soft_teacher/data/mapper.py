"""From a record and a seed to the view of a labeled image, or to two views of an unlabeled one."""

import copy
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances
from fvcore.transforms.transform import TransformList

from soft_teacher.data.augmentation import (
    evaluation_augmentations,
    labeled_augmentations,
    strong_augmentations,
    weak_augmentations,
)
from soft_teacher.data.image_files import MAX_PIXELS, ImageError, OpenedImage, read_image
from soft_teacher.data.randomness import seeded_sample
from soft_teacher.data.rendering import largest_reduction
from soft_teacher.data.semantic_maps import SemanticMapReader
from soft_teacher.data.views import draw_view, make_view, render_view


class LabeledMapper:
    """Maps a labeled record to one augmented view with its ground truth.

    Args:
        augmentations: what is done to the image and its objects.
        image_format: channel order, as in `detection_utils.read_image`.
        use_instance_mask: whether masks are kept.
        instance_mask_format: "polygon" or "bitmask".
        max_pixels: of an image that is decoded, see `read_image`.
        semantic_maps: reads the maps of semantic labels; None without them.
    """

    @configurable
    def __init__(
        self,
        *,
        augmentations: list[T.Augmentation],
        image_format: str,
        use_instance_mask: bool = False,
        instance_mask_format: str = "polygon",
        max_pixels: int = MAX_PIXELS,
        semantic_maps: SemanticMapReader | None = None,
    ) -> None:
        self._augmentations = T.AugmentationList(augmentations)
        self._image_format = image_format
        self._use_instance_mask = use_instance_mask
        self._instance_mask_format = instance_mask_format
        self._max_pixels = max_pixels
        self._semantic_maps = semantic_maps

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor, read from the config."""
        return {
            "augmentations": labeled_augmentations(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "use_instance_mask": cfg.MODEL.MASK_ON,
            "instance_mask_format": cfg.INPUT.MASK_FORMAT,
            "max_pixels": cfg.INPUT.MAX_PIXELS,
            "semantic_maps": SemanticMapReader.from_config(cfg),
        }

    def __call__(self, record: dict[str, Any], sample_seed: int) -> dict[str, Any]:
        """Read and augment one image; a function of the arguments and the file alone.

        Args:
            record: dict in Detectron2's dataset format, with `annotations`. Left unchanged.
            sample_seed: 0 to 2**64 - 1, see `randomness`.

        Returns:
            The view (see `make_view`) and `instances`, in the view's frame, with `gt_boxes`
            (xyxy float32), `gt_classes` and, if wanted, `gt_masks`; crowds and objects that
            the view has lost are dropped. If wanted, also `sem_seg`, see `SemanticMapReader`.

        Raises:
            ImageError: the file cannot be read or has another size than the record states.
        """
        image = read_labeled_image(record, self._image_format, self._max_pixels)
        with seeded_sample(sample_seed):
            view, transforms = make_view(image, record, self._augmentations)
        view["instances"] = self._instances(
            record["annotations"], transforms, tuple(view["image"].shape[1:])
        )
        if self._semantic_maps is not None:
            view["sem_seg"] = self._semantic_maps(record, view)
        return view

    def _instances(
        self, annotations: list[dict[str, Any]], transforms: TransformList, size: tuple[int, int]
    ) -> Instances:
        annotations = [
            detection_utils.transform_instance_annotations(
                self._clean_annotation(annotation), transforms, size
            )
            for annotation in annotations
            if annotation.get("iscrowd", 0) == 0
        ]
        instances = detection_utils.annotations_to_instances(
            annotations, size, mask_format=self._instance_mask_format
        )
        return detection_utils.filter_empty_instances(instances)

    def _clean_annotation(self, annotation: dict[str, Any]) -> dict[str, Any]:
        """A copy of what is needed, in float: transforms of integers would truncate."""
        box = np.asarray(annotation["bbox"], np.float64)
        cleaned = {
            "bbox": BoxMode.convert(box[None], annotation["bbox_mode"], BoxMode.XYXY_ABS)[0],
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": annotation["category_id"],
        }
        if self._use_instance_mask:
            segmentation = copy.deepcopy(annotation["segmentation"])
            if isinstance(segmentation, list):
                segmentation = [np.array(polygon, np.float64) for polygon in segmentation]
            cleaned["segmentation"] = segmentation
        return cleaned


class TwoViewMapper:
    """Maps an unlabeled record to a weak and a strong view of one decoded image.

    Args:
        weak_augmentations: what is done to the teacher's view.
        strong_augmentations: what is done to the student's view.
        image_format: channel order, as in `detection_utils.read_image`.
        max_pixels: of an image that is decoded, see `read_image`.
    """

    @configurable
    def __init__(
        self,
        *,
        weak_augmentations: list[T.Augmentation],
        strong_augmentations: list[T.Augmentation],
        image_format: str,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._weak_augmentations = T.AugmentationList(weak_augmentations)
        self._strong_augmentations = T.AugmentationList(strong_augmentations)
        self._image_format = image_format
        self._max_pixels = max_pixels

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor, read from the config."""
        return {
            "weak_augmentations": weak_augmentations(cfg),
            "strong_augmentations": strong_augmentations(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "max_pixels": cfg.INPUT.MAX_PIXELS,
        }

    def __call__(self, record: dict[str, Any], sample_seed: int) -> dict[str, dict[str, Any]]:
        """Read one image and augment it twice; a function of the arguments and the file alone.

        Args:
            record: dict with `file_name`, `image_id` and, if known, `height` and `width`. Left
                unchanged; annotations are not looked at.
            sample_seed: 0 to 2**64 - 1, see `randomness`.

        Returns:
            `{"weak": view, "strong": view}`, see `make_view`; the views' draws are independent.

        Raises:
            ImageError: the file cannot be read.
        """
        # A size that the record states wrongly does no harm here.
        file = OpenedImage(record["file_name"], self._image_format, None, self._max_pixels)
        with file, seeded_sample(sample_seed):
            weak = draw_view(file.size, self._weak_augmentations)
            strong = draw_view(file.size, self._strong_augmentations)
            image = file.decode(largest_reduction(file.size, [weak.transforms, strong.transforms]))
        return {
            "weak": render_view(image, record, weak),
            "strong": render_view(image, record, strong),
        }


class PseudoLabeledMapper:
    """Maps an unlabeled record with pseudo labels to the image as it is and to a strong view.

    Args:
        strong_augmentations: what is done to the student's view.
        image_format: channel order, as in `detection_utils.read_image`.
        max_pixels: of an image that is decoded, see `read_image`.
    """

    @configurable
    def __init__(
        self,
        *,
        strong_augmentations: list[T.Augmentation],
        image_format: str,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._strong_augmentations = T.AugmentationList(strong_augmentations)
        self._image_format = image_format
        self._max_pixels = max_pixels

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor, read from the config."""
        return {
            "strong_augmentations": strong_augmentations(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "max_pixels": cfg.INPUT.MAX_PIXELS,
        }

    def __call__(self, record: dict[str, Any], sample_seed: int) -> dict[str, dict[str, Any]]:
        """Read one image and augment it; a function of the arguments and the file alone.

        Args:
            record: dict in Detectron2's dataset format whose annotations have a `score`, see
                `pseudo_labeled_records`. Left unchanged.
            sample_seed: 0 to 2**64 - 1, see `randomness`.

        Returns:
            `{"weak": view, "strong": view}`, see `make_view`. The weak view is the image itself;
            it carries `pseudo_labels`, `Instances` in its frame with `pred_boxes` (xyxy float32),
            `pred_classes` and `scores`.

        Raises:
            ImageError: the file cannot be read or has another size than the record states.
        """
        image = read_labeled_image(record, self._image_format, self._max_pixels)
        labels = pseudo_label_instances(record["annotations"], image.shape[:2])
        boxes = labels.pred_boxes.tensor.double().numpy()
        with seeded_sample(sample_seed):
            weak, _ = make_view(image, record, T.AugmentationList([]))
            strong, _ = make_view(image, record, self._strong_augmentations, boxes)
        weak["pseudo_labels"] = labels
        return {"weak": weak, "strong": strong}


class ImageMapper:
    """Maps a record to an image as the models see it in evaluation.

    Args:
        augmentations: the resize to the size of the test.
        image_format: channel order, as in `detection_utils.read_image`.
        max_pixels: of an image that is decoded, see `read_image`.
    """

    @configurable
    def __init__(
        self,
        *,
        augmentations: list[T.Augmentation],
        image_format: str,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._augmentations = T.AugmentationList(augmentations)
        self._image_format = image_format
        self._max_pixels = max_pixels

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor, read from the config."""
        return {
            "augmentations": evaluation_augmentations(cfg),
            "image_format": cfg.INPUT.FORMAT,
            "max_pixels": cfg.INPUT.MAX_PIXELS,
        }

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Read and resize one image.

        Args:
            record: dict in Detectron2's dataset format.

        Returns:
            The view, see `make_view`; detections are wanted in the original's frame, whose size
            are `height` and `width`.

        Raises:
            ImageError: the file cannot be read or has another size than the record states.
        """
        image = read_labeled_image(record, self._image_format, self._max_pixels)
        return make_view(image, record, self._augmentations)[0]


def read_labeled_image(
    record: dict[str, Any], image_format: str, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """Decode the image of a record whose boxes are in the frame of the stated size.

    Returns:
        (H, W, C) uint8 of the stated size, if one is stated.

    Raises:
        ImageError: the file is missing, broken, no image or of another size; the message names it.
    """
    stated = (record["height"], record["width"]) if "height" in record else None
    image = read_image(record["file_name"], image_format, stated, max_pixels)
    if stated not in (None, image.shape[:2]):
        raise ImageError(
            f"The image {record['file_name']} has {image.shape[1]} x {image.shape[0]} pixels, but "
            f"its annotations are for {stated[1]} x {stated[0]}; correct width and height there, "
            "and the boxes if they were drawn on a resized image."
        )
    return image


def pseudo_label_instances(annotations: list[dict[str, Any]], size: tuple[int, int]) -> Instances:
    """Annotations with a `score`, as a detector gives its detections; crowds are left out.

    Args:
        annotations: in Detectron2's dataset format.
        size: (height, width) of the image.
    """
    objects = [x for x in annotations if x.get("iscrowd", 0) == 0]
    boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in objects]
    return Instances(
        size,
        pred_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)),
        pred_classes=torch.tensor([x["category_id"] for x in objects], dtype=torch.int64),
        scores=torch.tensor([x["score"] for x in objects], dtype=torch.float32),
    )
