"""Geometric operations of the strong view, of four groups.

Matrices are 3x3, act on columns (x, y, 1), and live in Detectron2's frame of boxes: the image
covers [0, W] x [0, H], and the center of the first pixel is (0.5, 0.5). Groups and ranges are
those of the official Soft Teacher code.
"""

import math
from collections.abc import Iterable

import cv2
import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform


def translation(dx: float, dy: float) -> np.ndarray:
    """Matrix of a shift by (dx, dy) pixels."""
    return np.array([[1.0, 0.0, dx], [0.0, 1.0, dy], [0.0, 0.0, 1.0]])


def rotation(degrees: float, center: tuple[float, float]) -> np.ndarray:
    """Matrix of a rotation about a point (x, y); positive angles turn x towards y."""
    sin, cos = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    return translation(*center) @ turn @ translation(-center[0], -center[1])


def shear(x_degrees: float, y_degrees: float) -> np.ndarray:
    """Matrix of a shear along x and then along y, both about the image's top left corner.

    The factors are the hyperbolic tangents of the angles, as in the official code: 30 degrees
    shear by 0.48, not by the 0.58 of a tangent.
    """
    along_x, along_y = np.eye(3), np.eye(3)
    along_x[0, 1] = math.tanh(math.radians(x_degrees))
    along_y[1, 0] = math.tanh(math.radians(y_degrees))
    return along_y @ along_x


def matrix_of(transforms: Iterable[Transform]) -> np.ndarray:
    """The 3x3 float64 matrix of affine transforms, read off what they do to three points."""
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    # One by one: a TransformList looks at more than its transforms, at each call.
    for transform in transforms:
        points = transform.apply_coords(points)
    matrix = np.eye(3)
    matrix[:2, :2] = (points[1:] - points[0]).T
    matrix[:2, 2] = points[0]
    return matrix


def warp(
    img: np.ndarray,
    matrix: np.ndarray,
    size: tuple[int, int],
    fill: int,
    interpolation: int = cv2.INTER_LINEAR,
) -> np.ndarray:
    """Map an image by a matrix.

    Args:
        img: (H, W) or (H, W, C).
        matrix: (3, 3), from the input's to the output's pixels, in the frame of boxes.
        size: height and width of the output.
        fill: value of output pixels that come from outside the input.
        interpolation: one of OpenCV's.
    """
    # OpenCV counts from the center of the first pixel, boxes from its corner.
    matrix = translation(-0.5, -0.5) @ matrix @ translation(0.5, 0.5)
    colors = img.ndim == 3 and img.shape[2] == 3
    warped = cv2.warpAffine(
        # OpenCV warps four channels in half the time of three.
        cv2.cvtColor(img, cv2.COLOR_BGR2BGRA) if colors else np.ascontiguousarray(img),
        matrix[:2],
        size[::-1],
        flags=interpolation,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(fill,) * 4,
    )
    if colors:
        return cv2.cvtColor(warped, cv2.COLOR_BGRA2BGR)
    # OpenCV drops a channel axis of length 1.
    return warped.reshape(*size, *img.shape[2:])


def shift(img: np.ndarray, dx: int, dy: int, fill: int) -> np.ndarray:
    """Shift an image, (H, W) or (H, W, C), by whole pixels; what comes from outside is `fill`."""
    height, width = img.shape[:2]
    if abs(dx) >= width or abs(dy) >= height:
        return np.full_like(img, fill)
    kept = img[max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)]
    borders = (max(dy, 0), max(-dy, 0), max(dx, 0), max(-dx, 0))
    moved = cv2.copyMakeBorder(kept, *borders, cv2.BORDER_CONSTANT, value=(fill,) * 4)
    # OpenCV drops a channel axis of length 1.
    return moved.reshape(img.shape)


class AffineTransform(Transform):
    """An affine map of the image onto a canvas of the same size.

    Args:
        matrix: (3, 3), from the input's to the output's pixels, in the frame of boxes.
        fill: value of output pixels that come from outside the input.
    """

    def __init__(self, matrix: np.ndarray, fill: int) -> None:
        super().__init__()
        self.matrix = np.asarray(matrix, np.float64)
        self.fill = fill

    @property
    def is_whole_shift(self) -> bool:
        """Whether this is a shift by whole pixels, which needs no interpolation."""
        by_whole_pixels = np.eye(3)
        by_whole_pixels[:2, 2] = np.round(self.matrix[:2, 2])
        return np.array_equal(self.matrix, by_whole_pixels)

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """Warp an image, (H, W) or (H, W, C), by bilinear interpolation."""
        if self.is_whole_shift:
            dx, dy = self.matrix[:2, 2].astype(int)
            return shift(img, dx, dy, self.fill)
        return warp(img, self.matrix, img.shape[:2], self.fill)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """Warp a label map or mask, (H, W), by nearest neighbor; outside is 0."""
        return warp(segmentation, self.matrix, segmentation.shape[:2], 0, cv2.INTER_NEAREST)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Map points, (N, 2)."""
        return coords @ self.matrix[:2, :2].T + self.matrix[:2, 2]

    def inverse(self) -> "AffineTransform":
        """The map back; what left the canvas is lost."""
        return AffineTransform(np.linalg.inv(self.matrix), self.fill)


class RandomGeometry(T.Augmentation):
    """Exactly one of: shift along x, shift along y, rotation, shear along x and y together.

    Each group is as likely; a group whose range is 0 is left out.

    Args:
        max_translate: largest shift, as a fraction of the image's side; rounded to whole pixels.
        max_rotate: largest rotation about the image's center, degrees.
        max_shear: largest shear angle, degrees.
        fill: value of pixels that come from outside the image.
    """

    def __init__(
        self, max_translate: float, max_rotate: float, max_shear: float, fill: int
    ) -> None:
        super().__init__()
        self.max_translate = max_translate
        self.max_rotate = max_rotate
        self.max_shear = max_shear
        self.fill = fill
        ranges = {
            "translate_x": max_translate,
            "translate_y": max_translate,
            "rotate": max_rotate,
            "shear": max_shear,
        }
        self._groups = [name for name, largest in ranges.items() if largest > 0]
        assert self._groups, "without any range there is nothing to draw"

    def get_transform(self, image: np.ndarray) -> AffineTransform:
        """Draw a group and its magnitude."""
        # The draw of numpy's choice, which would make an array of the names each time.
        group = self._groups[np.random.randint(len(self._groups))]
        return AffineTransform(self._draw_matrix(group, *image.shape[:2]), self.fill)

    def _draw_matrix(self, group: str, height: int, width: int) -> np.ndarray:
        # By whole pixels: not blurred, and quickly done.
        if group == "translate_x":
            return translation(round(width * self._symmetric(self.max_translate)), 0.0)
        if group == "translate_y":
            return translation(0.0, round(height * self._symmetric(self.max_translate)))
        if group == "rotate":
            return rotation(self._symmetric(self.max_rotate), (width / 2, height / 2))
        return shear(self._symmetric(self.max_shear), self._symmetric(self.max_shear))

    def _symmetric(self, largest: float) -> float:
        return float(np.random.uniform(-largest, largest))


class IndependentGeometry(RandomGeometry):
    """Each of the four groups of RandomGeometry with a probability of its own.

    What is drawn becomes one map, in the order shift, rotation, shear: the image is interpolated
    once, and what one operation moves off the canvas another may bring back.

    Args:
        max_translate, max_rotate, max_shear, fill: as of RandomGeometry.
        probability: of each group.
    """

    def __init__(
        self,
        max_translate: float,
        max_rotate: float,
        max_shear: float,
        fill: int,
        probability: float,
    ) -> None:
        super().__init__(max_translate, max_rotate, max_shear, fill)
        self.probability = probability

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw groups and their magnitudes; nothing is done if none is drawn."""
        matrices = [
            self._draw_matrix(group, *image.shape[:2])
            for group in self._groups
            if np.random.uniform() < self.probability
        ]
        if not matrices:
            return NoOpTransform()
        matrix = np.eye(3)
        for each in matrices:
            matrix = each @ matrix
        return AffineTransform(matrix, self.fill)
