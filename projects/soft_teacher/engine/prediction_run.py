"""Goes through images and videos, with progress, and hands what is found to the output."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace

import cv2
import numpy as np
from detectron2.config import CfgNode
from torch import nn
from tqdm import tqdm

from soft_teacher.data.video_files import VideoError, VideoFacts, read_video_facts
from soft_teacher.engine.prediction import (
    PredictionOptions,
    detect_in_images,
    detect_in_video,
)
from soft_teacher.engine.prediction_output import PictureError, PredictionOutput


class PredictionRun:
    """Looks for objects in one input after the other; ids are counted on through all of them.

    Args:
        cfg: the config of the detector.
        model: the detector, in eval mode.
        options: how to look.
        output: takes what is found.
        report: is told of files that cannot be read, a sentence each.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        options: PredictionOptions,
        output: PredictionOutput,
        report: Callable[[str], None],
    ):
        self._cfg = cfg
        self._model = model
        self._options = options
        self._output = output
        self._report = report
        self._next_id = 1

    def add_images(self, paths: list[str]) -> None:
        """Look for objects in image files; those that cannot be read are set aside."""
        if not paths:
            return
        found = detect_in_images(self._cfg, self._model, paths, self._next_id, self._options)
        progress = tqdm(zip(paths, found, strict=True), "Images", len(paths), unit=" images")
        for path, detected in progress:
            if detected.error:
                self._set_aside(path, detected.error)
                continue
            picture = self._output.add(path, detected)
            if picture is not None:
                self._output.write_picture(picture, path, detected.image_id)
        self._next_id += len(paths)

    def add_video(self, path: str) -> None:
        """Look for objects in each frame of a video; one that cannot be read is set aside."""
        try:
            facts = read_video_facts(path)
        except VideoError as error:
            self._set_aside(path, str(error))
            return
        first = self._next_id
        with ExitStack() as stack:
            writer = self._open_video(stack, path, facts)
            options = replace(self._options, pictures=writer is not None)
            for picture in self._frames(path, facts, options):
                if writer is not None:
                    writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        num_frames = self._next_id - first
        if num_frames < facts.num_frames:
            self._report(f"{path}: {num_frames} of about {facts.num_frames} frames could be read")

    def _open_video(self, stack: ExitStack, path: str, facts: VideoFacts) -> cv2.VideoWriter | None:
        """Where the pictures of a video go; None if they are not wanted or cannot be written."""
        if not self._options.pictures:
            return None
        video = self._output.video(path, self._next_id, facts.size, facts.frames_per_second)
        try:
            return stack.enter_context(video)
        except PictureError as error:
            self._report(f"{error} What is found in its frames is kept")
            return None

    def _frames(
        self, path: str, facts: VideoFacts, options: PredictionOptions
    ) -> Iterator[np.ndarray | None]:
        """The pictures of a video's frames, None if they are not wanted."""
        found = detect_in_video(self._cfg, self._model, path, self._next_id, options)
        total = facts.num_frames or None
        for index, detected in enumerate(tqdm(found, "Video", total, unit=" frames")):
            yield self._output.add(path, detected, frame_index=index)
            self._next_id += 1

    def _set_aside(self, path: str, reason: str) -> None:
        self._output.unreadable.append(path)
        self._report(f"{reason}. It is left out")
