"""The pixels of a view: first everything is drawn, then the image is made in few passes."""

from collections.abc import Sequence
from itertools import groupby, takewhile

import cv2
import numpy as np
import torch
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform, Transform, TransformList

from soft_teacher.data.color import PixelwiseColor
from soft_teacher.data.erase import EraseTransform
from soft_teacher.data.fast_transforms import FastFlip, FastResize
from soft_teacher.data.geometry import AffineTransform, matrix_of, warp
from soft_teacher.data.whole_jpeg import REDUCTIONS

HEADROOM = 1.5
"""How many times longer than a view's an image's sides must stay when it is decoded smaller. The
resize that follows then smooths nearly as it does with the whole image."""

_ZERO = bytes(1)


class ShapeInput(T.AugInput):
    """Input of augmentations that draw by the image's shape; no pixel is made.

    In the image's place it has zeros that take no memory.

    Args:
        shape: (H, W, C) of the image.
        boxes: (N, 4) float, xyxy, for augmentations that draw by them.
    """

    def __init__(self, shape: tuple[int, ...], boxes: np.ndarray | None = None) -> None:
        super().__init__(_zeros(shape), boxes=boxes)

    def transform(self, tfm: Transform) -> None:
        """Take the shape that the transform gives, only resizes change it, and move the boxes."""
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if isinstance(tfm, T.ResizeTransform):
            self.image = _zeros((tfm.new_h, tfm.new_w, *self.image.shape[2:]))


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros, uint8, that all lie at one place of the memory."""
    # As numpy's broadcast_to gives them, in a tenth of the time.
    return np.ndarray(shape, np.uint8, _ZERO, strides=(0,) * len(shape))


def render_tensor(image: np.ndarray, transforms: TransformList) -> torch.Tensor:
    """Apply transforms to an image, (H, W, C) uint8, see `render`; gives a (C, H, W) tensor."""
    colors, steps = _colors_first(transforms)
    if [type(step) for step in steps] not in ([FastResize], [FastResize, FastFlip]):
        return channels_first(_render(image, [*colors, *steps]))
    # In the order of the tensor from here on, as nothing more is done to the colors.
    planes = channels_first(_render(image, colors) if colors else image).numpy()
    resize, *flips = steps
    for plane in planes if flips else ():
        cv2.flip(plane, 1, dst=plane)
    return torch.from_numpy(resize.apply_planes(planes))


def render(image: np.ndarray, transforms: TransformList) -> np.ndarray:
    """Apply transforms to an image, (H, W, C) uint8, which stays as it is.

    The same as `transforms.apply_image` but for rounding and what follows a resize that enlarges:
    a turn or a shear does not interpolate it a second time, and colors are changed before it, where
    there are fewer pixels. That leaves edges as smooth as the resize makes them, where a color
    operation after it would sharpen some of them again (posterize, solarize).
    """
    colors, steps = _colors_first(transforms)
    return _render(image, [*colors, *steps])


def _render(image: np.ndarray, steps: list[Transform]) -> np.ndarray:
    original = image
    image = _in_memory_order(image)
    for geometric, run in groupby(steps, key=_is_geometric):
        if geometric:
            image = _render_geometry(image, list(run))
        else:
            for step in run:
                if type(step) is EraseTransform and not np.may_share_memory(image, original):
                    # The image is ours by now, and need not be copied.
                    step.erase(image)
                else:
                    image = step.apply_image(image)
    return image


def _colors_first(transforms: TransformList) -> tuple[list[Transform], list[Transform]]:
    """The colors that come before a resize which enlarges, and all else, in order."""
    steps = _steps(transforms)
    enlarged = list(takewhile(_enlarges_or_flips, steps))
    colors = list(takewhile(lambda x: type(x) is PixelwiseColor, steps[len(enlarged) :]))
    return colors, enlarged + steps[len(enlarged) + len(colors) :]


def _enlarges_or_flips(step: Transform) -> bool:
    return type(step) is FastFlip or (type(step) is FastResize and not step.shrinks)


def _steps(transforms: TransformList) -> list[Transform]:
    return [step for step in transforms.transforms if type(step) is not NoOpTransform]


def largest_reduction(size: tuple[int, int], views: Sequence[TransformList]) -> int:
    """How many times smaller an image may be decoded, since all of its views shrink it first.

    Only by factors that divide both sides: else the smaller image would cover another area than
    the original, and what is in the views would lie beside where their matrices say.

    Args:
        size: (height, width) of the image.
        views: what will be done to it for each view.

    Returns:
        One of `whole_jpeg.REDUCTIONS`; but for 1, it leaves HEADROOM times the sides of the views.
    """
    firsts = [next(iter(view.transforms), None) for view in views]
    if not all(isinstance(first, FastResize) for first in firsts):
        return 1
    needed = [max(lengths) for lengths in zip(*((x.new_h, x.new_w) for x in firsts), strict=True)]
    sides = list(zip(size, needed, strict=True))
    fitting = [
        factor
        for factor in REDUCTIONS
        if all(side % factor == 0 and HEADROOM * least * factor <= side for side, least in sides)
    ]
    return max(fitting, default=1)


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
    return type(step) in (FastResize, FastFlip, AffineTransform)


def _render_geometry(image: np.ndarray, run: list[Transform]) -> np.ndarray:
    *before, last = run
    interpolates = type(last) is AffineTransform and not last.is_whole_shift
    if interpolates and _keep_pixels(before):
        resizes = [step for step in before if type(step) is FastResize]
        size = (resizes[-1].new_h, resizes[-1].new_w) if resizes else image.shape[:2]
        return warp(image, matrix_of(run), size, last.fill)
    if [type(step) for step in run[:2]] == [FastResize, FastFlip]:
        # The flip of the smaller image is the cheaper one; the result is the same.
        run[:2] = run[1::-1]
    for step in run:
        image = step.apply_image(image)
    return image


def _keep_pixels(run: list[Transform]) -> bool:
    """Whether these transforms lose no pixel, so that interpolating once after them suffices."""
    return not any(
        type(step) is AffineTransform or (type(step) is FastResize and step.shrinks) for step in run
    )
