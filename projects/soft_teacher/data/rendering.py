"""The pixels of a view: first everything is drawn, then the image is made in few passes."""

from itertools import groupby

import cv2
import numpy as np
import torch
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform, TransformList

from soft_teacher.data.erase import EraseTransform
from soft_teacher.data.fast_transforms import FastFlip, FastResize
from soft_teacher.data.geometry import AffineTransform, matrix_of, warp


class ShapeInput(T.AugInput):
    """Input of augmentations that draw by the image's shape; no pixel is made.

    In the image's place it has zeros that take no memory.

    Args:
        shape: (H, W, C) of the image.
        boxes: (N, 4) float, xyxy, for augmentations that draw by them.
    """

    def __init__(self, shape: tuple[int, ...], boxes: np.ndarray | None = None) -> None:
        super().__init__(np.broadcast_to(np.uint8(0), shape), boxes=boxes)

    def transform(self, tfm: Transform) -> None:
        """Take the shape that the transform gives, only resizes change it, and move the boxes."""
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if isinstance(tfm, T.ResizeTransform):
            shape = (tfm.new_h, tfm.new_w, *self.image.shape[2:])
            self.image = np.broadcast_to(np.uint8(0), shape)


def render(image: np.ndarray, transforms: TransformList) -> np.ndarray:
    """Apply transforms to an image, (H, W, C) uint8, which stays as it is.

    The same as `transforms.apply_image` but for rounding, and that a resize which enlarges is not
    interpolated a second time by a turn or a shear that follows it.
    """
    original = image
    image = _in_memory_order(image)
    steps = [step for step in transforms.transforms if not isinstance(step, NoOpTransform)]
    for geometric, run in groupby(steps, key=_is_geometric):
        if geometric:
            image = _render_geometry(image, list(run))
        else:
            for step in run:
                if isinstance(step, EraseTransform) and not np.may_share_memory(image, original):
                    # The image is ours by now, and need not be copied.
                    step.erase(image)
                else:
                    image = step.apply_image(image)
    return image


def channels_first(image: np.ndarray) -> torch.Tensor:
    """A copy of an image, (H, W, C) uint8, as a contiguous tensor, (C, H, W)."""
    height, width, channels = image.shape
    planes = np.empty((channels, height, width), np.uint8)
    # OpenCV writes into the planes, which numpy's transpose would fill several times as slowly.
    cv2.split(image, list(planes))
    return torch.from_numpy(planes)


def _in_memory_order(image: np.ndarray) -> np.ndarray:
    """The same image, contiguous: each OpenCV function would copy a view anew, and slowly."""
    # Detectron2 gives BGR images as a view of RGB ones.
    if image.strides[2] < 0 and image.shape[2] == 3:
        return cv2.cvtColor(np.ascontiguousarray(image[:, :, ::-1]), cv2.COLOR_RGB2BGR)
    return np.ascontiguousarray(image)


def _is_geometric(step: Transform) -> bool:
    return isinstance(step, FastResize | FastFlip | AffineTransform)


def _render_geometry(image: np.ndarray, run: list[Transform]) -> np.ndarray:
    *before, last = run
    interpolates = isinstance(last, AffineTransform) and not last.is_whole_shift
    if interpolates and _keep_pixels(before):
        resizes = [step for step in before if isinstance(step, FastResize)]
        size = (resizes[-1].new_h, resizes[-1].new_w) if resizes else image.shape[:2]
        return warp(image, matrix_of(TransformList(run)), size, last.fill)
    if len(run) > 1 and isinstance(run[0], FastResize) and isinstance(run[1], FastFlip):
        # The flip of the smaller image is the cheaper one; the result is the same.
        run[:2] = run[1::-1]
    for step in run:
        image = step.apply_image(image)
    return image


def _keep_pixels(run: list[Transform]) -> bool:
    """Whether these transforms lose no pixel, so that interpolating once after them suffices."""
    return not any(
        isinstance(step, AffineTransform) or (isinstance(step, FastResize) and step.shrinks)
        for step in run
    )
