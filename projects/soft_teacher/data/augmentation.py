"""What is done to each view: the official Soft Teacher recipe, read from the config.

The order is the official one: resize, flip, then color and geometry in random order, then
erase (`rendering.py` says where pixels are made in another one). The labeled view has no geometry
and no erasing, the weak view resize and flip alone.
INPUT.AUG.LABELED_COLOR and BOX_GEOMETRY make it STAC's recipe, from which it descends;
INPUT.AUG.MODE "independent" that of the paper, in which operations do not exclude one another.
"""

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform, TransformList

from soft_teacher.data.box_geometry import RandomBoxGeometry
from soft_teacher.data.color import COLOR_OPERATIONS, RandomColor
from soft_teacher.data.erase import RandomErase
from soft_teacher.data.fast_transforms import Redrawn, at_least_one_pixel, fast
from soft_teacher.data.geometry import IndependentGeometry, RandomGeometry
from soft_teacher.data.randomness import drawn_for_step

INDEPENDENT = "independent"
MODES = ("one_of", INDEPENDENT)


class RandomOrder(T.AugmentationList):
    """Augmentations applied one after the other, in an order drawn each time."""

    def __call__(self, aug_input: T.AugInput) -> TransformList:
        """Augment the input in place; returns what was applied."""
        order = np.random.permutation(len(self.augs))
        return TransformList([self.augs[i](aug_input) for i in order])


class RandomChoice(T.AugmentationList):
    """One of several augmentations, each as likely."""

    def __call__(self, aug_input: T.AugInput) -> Transform:
        """Augment the input in place; returns what was applied."""
        return self.augs[np.random.randint(len(self.augs))](aug_input)


class StepwiseResize(T.Augmentation):
    """A resize whose scale is drawn once for all images of a training step.

    Images of one scale fill a batch with less padding, and processes wait less for each other.

    Args:
        resize: draws the scale.
        view: number of the view; each draws a scale of its own.
    """

    def __init__(self, resize: T.Augmentation, view: int) -> None:
        super().__init__()
        self.resize = resize
        self.view = view

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw the transform for an image, (H, W, C)."""
        with drawn_for_step(self.view):
            return self.resize.get_transform(image)


def labeled_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Augmentations of the labeled view."""
    return [*weak_augmentations(cfg), *(_color(cfg) if cfg.INPUT.AUG.LABELED_COLOR else [])]


def weak_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Augmentations of the weak view, the teacher's."""
    return _resize_and_flip(cfg, view=0)


def strong_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Augmentations of the strong view, the student's on unlabeled images."""
    changes = RandomOrder([*_color(cfg), *_geometry(cfg)])
    return [*_resize_and_flip(cfg, view=1), changes, *_erase(cfg)]


def evaluation_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """The resize of evaluation, Detectron2's own."""
    drawn = detection_utils.build_augmentation(cfg, is_train=False)
    return [Redrawn(x, at_least_one_pixel) for x in drawn]


def _resize_and_flip(cfg: CfgNode, view: int) -> list[T.Augmentation]:
    if cfg.INPUT.CROP.ENABLED:
        raise ValueError("INPUT.CROP.ENABLED is not supported; set it to False.")
    drawn = detection_utils.build_augmentation(cfg, is_train=True)
    resize, *flip = (Redrawn(x, at_least_one_pixel, fast) for x in drawn)
    return [StepwiseResize(resize, view) if cfg.INPUT.AUG.SCALE_PER_STEP else resize, *flip]


def _color(cfg: CfgNode) -> list[T.Augmentation]:
    aug = cfg.INPUT.AUG
    if not aug.COLOR:
        return []
    if not _is_independent(cfg):
        return [RandomColor(cfg.INPUT.FORMAT)]
    each = [RandomColor(cfg.INPUT.FORMAT, (x,)) for x in COLOR_OPERATIONS if x != "identity"]
    return [RandomOrder([T.RandomApply(x, aug.COLOR_PROBABILITY) for x in each])]


def _is_independent(cfg: CfgNode) -> bool:
    """Whether operations are drawn independently.

    Raises:
        ValueError: INPUT.AUG.MODE or a probability has no meaning.
    """
    aug = cfg.INPUT.AUG
    if aug.MODE not in MODES:
        raise ValueError(
            f"INPUT.AUG.MODE is {aug.MODE!r}; choose one of {', '.join(map(repr, MODES))}."
        )
    for key in ("COLOR_PROBABILITY", "GEOMETRY_PROBABILITY"):
        if not 0 <= aug[key] <= 1:
            raise ValueError(f"INPUT.AUG.{key} is {aug[key]}; it must lie in 0 to 1.")
    return aug.MODE == INDEPENDENT


def _geometry(cfg: CfgNode) -> list[T.Augmentation]:
    aug = cfg.INPUT.AUG
    limits = {"MAX_TRANSLATE": 1.0, "MAX_ROTATE": 180.0, "MAX_SHEAR": 90.0}
    for key, limit in limits.items():
        if not 0 <= aug[key] <= limit:
            raise ValueError(f"INPUT.AUG.{key} is {aug[key]}; it must lie in 0 to {limit}.")
    if not aug.GEOMETRY or not any(aug[key] for key in limits):
        return []
    ranges = (aug.MAX_TRANSLATE, aug.MAX_ROTATE, aug.MAX_SHEAR)
    geometry = _random_geometry(cfg, *ranges)
    if not aug.BOX_GEOMETRY:
        return [geometry]
    if not cfg.SOFT_TEACHER.PSEUDO_LABELS.FILES:
        raise ValueError(
            "INPUT.AUG.BOX_GEOMETRY needs boxes that are known before an image is augmented, those "
            "of SOFT_TEACHER.PSEUDO_LABELS.FILES; name files there, or set it to False."
        )
    in_box = _random_geometry(cfg, ranges[0] / 2, ranges[1] / 3, ranges[2] / 3)
    return [RandomChoice([geometry, RandomBoxGeometry(in_box)])]


def _random_geometry(cfg: CfgNode, *ranges: float) -> RandomGeometry:
    aug = cfg.INPUT.AUG
    if _is_independent(cfg):
        return IndependentGeometry(*ranges, aug.FILL, aug.GEOMETRY_PROBABILITY)
    return RandomGeometry(*ranges, aug.FILL)


def _erase(cfg: CfgNode) -> list[T.Augmentation]:
    aug = cfg.INPUT.AUG
    patches = tuple(aug.ERASE_PATCHES)
    if len(patches) != 2 or not 0 <= patches[0] <= patches[1]:
        raise ValueError(
            f"INPUT.AUG.ERASE_PATCHES is {patches}; it must be the lowest and the highest number "
            "of patches, such as (1, 4)."
        )
    if not 0 <= aug.ERASE_MIN_SIZE <= aug.ERASE_MAX_SIZE <= 1:
        raise ValueError(
            f"INPUT.AUG.ERASE_MIN_SIZE is {aug.ERASE_MIN_SIZE} and ERASE_MAX_SIZE "
            f"{aug.ERASE_MAX_SIZE}; they must lie in 0 to 1, the smallest first."
        )
    if patches[1] == 0:
        return []
    return [RandomErase(patches, aug.ERASE_MIN_SIZE, aug.ERASE_MAX_SIZE, aug.FILL)]
