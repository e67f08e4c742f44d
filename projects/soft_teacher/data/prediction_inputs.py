"""What people name to have objects found in: images, folders, patterns, lists and videos."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from soft_teacher.data.image_sources import IMAGE_SUFFIXES, find_images
from soft_teacher.data.video_files import VIDEO_SUFFIXES, is_video_name


@dataclass(frozen=True)
class PredictionInputs:
    """Paths of image files and of video files, each once, in the order in which they were named."""

    images: list[str]
    videos: list[str]


def find_inputs(named: Sequence[str]) -> PredictionInputs:
    """Sort out what a user names.

    A name is an image, a video, or a source of images as of `image_sources.find_images`: a folder,
    which is searched recursively, a glob pattern or a text list. Whether a file can be read is not
    looked at.

    Raises:
        ValueError: there is no such thing, or no image in it.
    """
    images: list[str] = []
    videos: list[str] = []
    for name in named:
        if os.path.isfile(name) and is_video_name(name):
            videos.append(name)
        elif os.path.isfile(name) and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
            images.append(name)
        else:
            images += _images_of(name)
    return PredictionInputs(list(dict.fromkeys(images)), list(dict.fromkeys(videos)))


def _images_of(source: str) -> list[str]:
    try:
        return find_images(source)
    except ValueError as error:
        raise ValueError(
            f"{source!r} is no image, no folder, pattern or text list (.txt) with an image, and no "
            f"video. Images end in {_listed(IMAGE_SUFFIXES)}, videos in {_listed(VIDEO_SUFFIXES)} "
            "and are named one by one; check the path."
        ) from error


def _listed(suffixes: frozenset[str]) -> str:
    return ", ".join(sorted(suffixes))
