"""Reading the frames of video files, by OpenCV."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

VIDEO_SUFFIXES = frozenset(
    f".{name}" for name in ("avi", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "webm", "wmv")
)


class VideoError(OSError):
    """A video file that is missing, damaged or no video."""


@dataclass(frozen=True)
class VideoFacts:
    """What the head of a video file says.

    Attributes:
        size: (height, width) of the upright frames.
        frames_per_second: 0 if unknown.
        num_frames: about how many there are; 0 if unknown. Only reading tells.
    """

    size: tuple[int, int]
    frames_per_second: float
    num_frames: int


def is_video_name(path: str) -> bool:
    """Whether a file is called like a video."""
    return os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES


def read_video_facts(path: str) -> VideoFacts:
    """The size and length of a video.

    Raises:
        VideoError: it cannot be read; the message names it.
    """
    first = next(video_frames(path))
    with _opened(path) as video:
        return VideoFacts(
            first.shape[:2],
            max(0.0, video.get(cv2.CAP_PROP_FPS)),
            max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT))),
        )


def video_frames(path: str) -> Iterator[np.ndarray]:
    """The frames of a video, one after the other, turned upright where the file says so.

    Where a file is damaged, the frames end; whether they did too early, only `VideoFacts` tells.

    Yields:
        uint8 (H, W, 3), BGR.

    Raises:
        VideoError: there is no frame; the message names the file.
    """
    with _opened(path) as video:
        found, frame = video.read()
        if not found:
            raise VideoError(f"Cannot read the video {path}: OpenCV finds no frame in it")
        while found:
            yield frame
            found, frame = video.read()


@contextlib.contextmanager
def _opened(path: str) -> Iterator[cv2.VideoCapture]:
    # What is no file, OpenCV might take for an address or for numbered images.
    if not os.path.isfile(path):
        raise VideoError(f"Cannot read the video {path}: there is no such file")
    video = cv2.VideoCapture(path, cv2.CAP_FFMPEG)
    try:
        if not video.isOpened():
            raise VideoError(f"Cannot read the video {path}: OpenCV knows no such format")
        yield video
    finally:
        video.release()
