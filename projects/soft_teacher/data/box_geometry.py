"""A geometric operation on what lies in one box, the rest of the image staying as it is.

STAC (Sohn et al., 2020) does it on half of its strong views, in place of one on the whole image.
"""

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform

from soft_teacher.data.geometry import AffineTransform, RandomGeometry
from soft_teacher.data.pixel_transform import PixelTransform


class BoxGeometryTransform(PixelTransform):
    """Apply a transform inside a rectangle of the image; the box still bounds what is in it.

    Args:
        box: xyxy in pixels, upper bounds excluded, inside the image.
        inner: transform of an image of the box's size.
    """

    def __init__(self, box: tuple[int, int, int, int], inner: AffineTransform) -> None:
        super().__init__()
        self.box = box
        self.inner = inner

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Change the rectangle in a copy of the image, (H, W) or (H, W, C)."""
        x0, y0, x1, y1 = self.box
        img = img.copy()
        img[y0:y1, x0:x1] = self.inner.apply_image(img[y0:y1, x0:x1].copy())
        return img


class RandomBoxGeometry(T.Augmentation):
    """Draw one of the image's boxes and a geometric operation on what is in it.

    Args:
        geometry: draws the operation.
    """

    def __init__(self, geometry: RandomGeometry) -> None:
        super().__init__()
        self.geometry = geometry

    def get_transform(self, image: np.ndarray, boxes: np.ndarray) -> Transform:
        """Draw the box and the operation; without a box in the image nothing is done.

        Args:
            image: (H, W, C).
            boxes: (N, 4), xyxy.
        """
        height, width = image.shape[:2]
        inside = np.round(boxes).clip(0, [width, height, width, height]).astype(int)
        inside = inside[(inside[:, 2:] > inside[:, :2]).all(axis=1)]
        if len(inside) == 0:
            return T.NoOpTransform()
        x0, y0, x1, y1 = inside[np.random.randint(len(inside))].tolist()
        inner = self.geometry.get_transform(image[y0:y1, x0:x1])
        return BoxGeometryTransform((x0, y0, x1, y1), inner)
