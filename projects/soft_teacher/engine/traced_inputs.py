"""Images to trace a detector with, and to check the traced one on."""

from pathlib import Path

import cv2
import torch
from detectron2.config import CfgNode
from torch import Tensor

from soft_teacher.data.image_files import read_image
from soft_teacher.data.rendering import channels_first

# Detectron2's default, for configs that leave images as large as they are.
_SHORTER_SIDE = 800


def example_images(cfg: CfgNode, photo: Path | None) -> list[Tensor]:
    """An image as wide as photographs are, of the size of evaluation, and a smaller, high one.

    Neither side of the second is a multiple of 32, nor is it padded like that of the first.

    Args:
        cfg: the config.
        photo: an image file that is resized to both sizes; None for noise.

    Returns:
        Two images, float32 (3, H, W), 0 to 255, in the channel order INPUT.FORMAT.

    Raises:
        ImageError: the photo cannot be read.
    """
    side = cfg.INPUT.MIN_SIZE_TEST or _SHORTER_SIDE
    sizes = ((side, side * 4 // 3), (side * 7 // 8 + 3, side * 5 // 8 + 1))
    if photo is None:
        generator = torch.Generator().manual_seed(0)
        return [
            torch.randint(256, (3, *size), generator=generator).to(torch.float32) for size in sizes
        ]
    image = read_image(str(photo), cfg.INPUT.FORMAT, None, cfg.INPUT.MAX_PIXELS)
    return [channels_first(cv2.resize(image, size[::-1])).float() for size in sizes]
