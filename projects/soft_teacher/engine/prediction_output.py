"""The folder that predictions are written to: COCO results, the list of images, pictures.

results.json     all detections, in COCO's format for results
images.json      what their image and category ids mean, in COCO's format, without annotations
pictures/        a picture of each image
videos/          each video with its detections
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from soft_teacher.analysis.detection_pictures import draw_detections
from soft_teacher.analysis.drawing import as_jpeg
from soft_teacher.engine.atomic_file import open_atomically
from soft_teacher.engine.prediction import Detected

# Of the name of a file, in the name of its picture.
_LETTERS_KEPT = 40
# What all players of the desktop know, and OpenCV writes without further libraries.
_CODEC = "mp4v"
_PARTIAL = "unfinished_"
# Of videos that do not tell theirs.
_FRAMES_PER_SECOND = 25.0
# MPEG-4 counts up to 65,535: hundredths of a frame up to this rate, and whole ones beyond.
_MOST_IN_HUNDREDTHS = 655.0
# No camera; files without a rate of their own have 90,000, say.
_MOST_FRAMES_PER_SECOND = 10_000.0


class PictureError(OSError):
    """A file of pictures cannot be written; what was found in them can still be."""


class PredictionOutput:
    """Collects detections and writes them in the end; pictures are written at once.

    Args:
        folder: where to; is made, and must be empty.
        categories: `id` and `name` of each class, in the model's order.

    Attributes:
        images: the images that could be read, as entries of images.json.
        results: their detections, as entries of results.json.
        unreadable: paths of the images and videos that could not be read.

    Raises:
        ValueError: the folder holds something.
    """

    def __init__(self, folder: Path, categories: list[dict[str, Any]]):
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(
                f"--output {folder} is there and not empty; name a new folder, so that pictures of "
                "two runs are not mixed, or remove it."
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.images: list[dict[str, Any]] = []
        self.results: list[dict[str, Any]] = []
        self.unreadable: list[str] = []
        self._folder = folder
        self._categories = categories
        self._names = {x["id"]: x["name"] for x in categories}

    def add(self, path: str, detected: Detected, **facts: int) -> np.ndarray | None:
        """Take the detections of an image, or of a frame, that could be read.

        Args:
            path: of the image or the video.
            detected: what was found.
            facts: further ones, for the image's entry.

        Returns:
            The picture, uint8 (H, W, 3), RGB; None if there is no photo to draw on.
        """
        height, width = detected.size
        image = {"id": detected.image_id, "file_name": path, "height": height, "width": width}
        entries = [
            {**x, "category_id": self._categories[x["category_id"]]["id"]} for x in detected.objects
        ]
        self.images.append({**image, **facts})
        self.results += entries
        if detected.photo is None:
            return None
        return draw_detections(detected.photo, detected.size, entries, self._names)

    def write_picture(self, picture: np.ndarray, path: str, image_id: int) -> None:
        """Write the picture of an image file."""
        place = self._folder / "pictures" / f"{_safe_name(path, image_id)}.jpg"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(as_jpeg(picture))

    @contextmanager
    def video(
        self, path: str, first_id: int, size: tuple[int, int], frames_per_second: float
    ) -> Iterator[cv2.VideoWriter]:
        """A file for the pictures (BGR) of a video's frames; it has its name once it is complete.

        Args:
            path: of the video that is read.
            first_id: of its first frame.
            size: (height, width) of the frames.
            frames_per_second: rounded to hundredths; 25 are taken where it is unknown (0, or no
                rate of a video).

        Raises:
            PictureError: it cannot be written; nothing was read yet.
        """
        place = self._folder / "videos" / f"{_safe_name(path, first_id)}.mp4"
        place.parent.mkdir(exist_ok=True)
        partial = place.with_name(_PARTIAL + place.name)
        writer = cv2.VideoWriter(
            str(partial),
            cv2.CAP_FFMPEG,
            cv2.VideoWriter_fourcc(*_CODEC),
            _plain_rate(frames_per_second),
            size[::-1],
        )
        if not writer.isOpened():
            raise PictureError(
                f"Cannot write {place}: OpenCV's FFmpeg refuses it. See that the folder may be "
                "written to, or leave pictures out by --no-pictures."
            )
        try:
            yield writer
        finally:
            writer.release()
        os.replace(partial, place)

    def write(self, info: dict[str, Any]) -> None:
        """Write results.json and images.json; each has its name only when it is complete.

        Args:
            info: how the detections were made; the unreadable files are added to it.
        """
        images = {
            "info": {**info, "unreadable": self.unreadable},
            "categories": self._categories,
            "images": self.images,
        }
        for name, content in (("images.json", images), ("results.json", self.results)):
            with open_atomically(str(self._folder / name), "w") as file:
                json.dump(content, file)
                file.write("\n")


def _plain_rate(frames_per_second: float) -> float:
    # Comparisons with NaN are false.
    if not 0.01 <= frames_per_second <= _MOST_FRAMES_PER_SECOND:
        return _FRAMES_PER_SECOND
    return round(frames_per_second, 2 if frames_per_second <= _MOST_IN_HUNDREDTHS else 0)


def _safe_name(path: str, number: int) -> str:
    """Name of a picture: the number makes it the only one, and what follows leads nowhere."""
    stem = Path(path).stem[:_LETTERS_KEPT]
    letters = "".join(x if x.isalnum() or x in "-_" else "_" for x in stem)
    return f"{number:06d}_{letters}"
