"""Detectron2's resize and horizontal flip, done by faster libraries than Pillow and numpy.

Draws, sizes and coordinates are Detectron2's own; only the arithmetic on pixels is another.
"""

from collections.abc import Callable

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import transforms as T
from fvcore.transforms.transform import HFlipTransform, Transform
from PIL import Image


class FastResize(T.ResizeTransform):
    """Bilinear resize of images, several times as fast as by Pillow and the same to 2 gray levels.

    OpenCV enlarges. Torch shrinks, by a filter that grows with the scale, as Pillow's does and
    OpenCV's does not: the image would look coarser in training than in Detectron2's inference.
    """

    @property
    def shrinks(self) -> bool:
        """Whether a side gets shorter."""
        return self.new_h < self.h or self.new_w < self.w

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize an image, (H, W) or (H, W, C).

        Args:
            img: the image, or the same made smaller, as by `OpenedImage.decode`.
            interp: another of Pillow's interpolations, for masks.
        """
        bilinear = (self.interp if interp is None else interp) == Image.BILINEAR
        if not bilinear or img.dtype != np.uint8 or img.ndim != 3:
            return super().apply_image(img, interp)
        if self.shrinks:
            return self._shrink(img)
        resized = cv2.resize(img, (self.new_w, self.new_h), interpolation=cv2.INTER_LINEAR)
        # OpenCV drops a channel axis of length 1.
        return resized.reshape(self.new_h, self.new_w, img.shape[2])

    def apply_planes(self, planes: np.ndarray) -> np.ndarray:
        """Resize an image whose channels lie one after the other, (C, H, W) uint8.

        The pixels are those of `apply_image`.
        """
        size = (self.new_h, self.new_w)
        if self.shrinks:
            return self._shrink_planes(torch.from_numpy(planes))
        resized = np.empty((len(planes), *size), np.uint8)
        for plane, to in zip(planes, resized, strict=True):
            cv2.resize(plane, size[::-1], dst=to, interpolation=cv2.INTER_LINEAR)
        return resized

    def _shrink(self, img: np.ndarray) -> np.ndarray:
        shrunk = self._shrink_planes(torch.from_numpy(np.ascontiguousarray(img)).permute(2, 0, 1))
        return cv2.merge(list(shrunk)).reshape(self.new_h, self.new_w, img.shape[2])

    def _shrink_planes(self, planes: torch.Tensor) -> np.ndarray:
        size = (self.new_h, self.new_w)
        return F.interpolate(planes[None], size, mode="bilinear", antialias=True)[0].numpy()


class FastFlip(HFlipTransform):
    """Horizontal flip that gives an image in plain memory order.

    A numpy view with a negative stride would cost each operation after it a slow copy.
    """

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Flip an image, (H, W) or (H, W, C)."""
        return cv2.flip(img, 1).reshape(img.shape)


class Redrawn(T.Augmentation):
    """An augmentation whose transforms are exchanged for others after they are drawn.

    Args:
        augmentation: draws the transforms.
        changes: functions such as `fast`, applied one after the other.
    """

    def __init__(
        self, augmentation: T.Augmentation, *changes: Callable[[Transform], Transform]
    ) -> None:
        super().__init__()
        self.augmentation = augmentation
        self.changes = changes

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw the transform for an image, (H, W, C)."""
        drawn = self.augmentation.get_transform(image)
        for change in self.changes:
            drawn = change(drawn)
        return drawn


def at_least_one_pixel(drawn: Transform) -> Transform:
    """Leave a pixel of a side that a resize would round away, as of a 1 x 300 image."""
    if not isinstance(drawn, T.ResizeTransform) or min(drawn.new_h, drawn.new_w) >= 1:
        return drawn
    new_size = (max(drawn.new_h, 1), max(drawn.new_w, 1))
    return T.ResizeTransform(drawn.h, drawn.w, *new_size, drawn.interp)


def fast(drawn: Transform) -> Transform:
    """The fast one in place of a resize or a horizontal flip."""
    # Subclasses may do something else, so they stay as they are.
    if type(drawn) is T.ResizeTransform:
        return FastResize(drawn.h, drawn.w, drawn.new_h, drawn.new_w, drawn.interp)
    if type(drawn) is HFlipTransform:
        return FastFlip(drawn.width)
    return drawn
