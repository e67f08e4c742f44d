"""Erased patches on the strong view, as in the official Soft Teacher code."""

import numpy as np
from detectron2.data import transforms as T

from soft_teacher.data.pixel_transform import PixelTransform


class EraseTransform(PixelTransform):
    """Fill rectangles of the image; coordinates and masks stay as they are.

    Args:
        patches: (N, 4) integers, xyxy in pixels, upper bounds excluded.
        fill: the value that replaces the pixels.
    """

    def __init__(self, patches: np.ndarray, fill: int) -> None:
        super().__init__()
        self.patches = patches
        self.fill = fill

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Fill the patches in a copy of the image, (H, W) or (H, W, C)."""
        img = img.copy()
        self.erase(img)
        return img

    def erase(self, img: np.ndarray) -> None:
        """Fill the patches in the image itself, (H, W) or (H, W, C)."""
        for x0, y0, x1, y1 in self.patches:
            img[y0:y1, x0:x1] = self.fill


class RandomErase(T.Augmentation):
    """Erase a random number of patches, each of the image's shape, anywhere inside it.

    Args:
        num_patches: lowest and highest number, both included.
        min_size: smallest side of a patch, as a fraction of the image's side.
        max_size: largest side of a patch, as a fraction of the image's side.
        fill: the value that replaces the pixels.
    """

    def __init__(
        self, num_patches: tuple[int, int], min_size: float, max_size: float, fill: int
    ) -> None:
        super().__init__()
        self.num_patches = num_patches
        self.min_size = min_size
        self.max_size = max_size
        self.fill = fill

    def get_transform(self, image: np.ndarray) -> EraseTransform:
        """Draw the patches."""
        height, width = image.shape[:2]
        lowest, highest = self.num_patches
        count = np.random.randint(lowest, highest + 1)
        patches = [self._draw_patch(height, width) for _ in range(count)]
        return EraseTransform(np.array(patches, np.int64).reshape(-1, 4), self.fill)

    def _draw_patch(self, height: int, width: int) -> tuple[int, int, int, int]:
        ratio = np.random.uniform(self.min_size, self.max_size)
        patch_height, patch_width = int(ratio * height), int(ratio * width)
        x = np.random.randint(0, width - patch_width + 1)
        y = np.random.randint(0, height - patch_height + 1)
        return x, y, x + patch_width, y + patch_height
