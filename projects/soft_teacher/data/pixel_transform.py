"""Transforms that change what is seen at a place, and move nothing."""

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform


class PixelTransform(Transform):
    """Changes pixels alone: boxes and masks stay, as the objects are where they were.

    Detectron2's ColorTransform does so with a function; this one has attributes, for what looks at
    the transforms that were drawn. Subclasses say what happens to the image.
    """

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Nothing moves."""
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """An object that is not seen is still there."""
        return segmentation

    def inverse(self) -> Transform:
        """Nothing moved."""
        return T.NoOpTransform()
