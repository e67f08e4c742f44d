"""How many pairs of views a core makes in a second, beside the least that has to be done."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from soft_teacher.data import TwoViewMapper, mapper, rendering
from soft_teacher.data.erase import EraseTransform
from soft_teacher.data.fast_transforms import FastFlip, FastResize
from soft_teacher.data.geometry import AffineTransform
from soft_teacher.data.image_files import OpenedImage
from soft_teacher.data.memory import keep_freed_memory
from soft_teacher.engine.benchmark.comparison import spread
from soft_teacher.engine.benchmark.phase_clock import TOTAL, PhaseClock

DECODE = "decode"
# The clock of the parts goes on while other programs run, so each view is made several times.
REPEATS = 3
# What belongs to which part. A turn or shear that is sampled together with the resize before it
# is geometry.
PARTS: tuple[tuple[object, str, str], ...] = (
    (mapper, "OpenedImage", DECODE),
    (OpenedImage, "decode", DECODE),
    (FastResize, "apply_image", "resize and flip"),
    (FastResize, "apply_planes", "resize and flip"),
    (FastFlip, "apply_image", "resize and flip"),
    (T.ColorTransform, "apply_image", "color"),
    (AffineTransform, "apply_image", "geometry"),
    (rendering, "warp", "geometry"),
    (EraseTransform, "erase", "erase"),
    (rendering, "channels_first", "to tensor"),
)


@dataclass(frozen=True)
class Throughput:
    """What was measured, per image.

    Attributes:
        floor: CPU seconds of each round to decode an image and resize it twice.
        views: CPU seconds of each round to read an image and make two views of it.
        parts: mean seconds of each part of making two views, "total" first.
    """

    floor: list[float]
    views: list[float]
    parts: dict[str, float]

    def describe(self) -> dict[str, Any]:
        """All numbers for a file."""
        return {
            "pairs_per_second": 1 / statistics.median(self.views),
            "floor_per_second": 1 / statistics.median(self.floor),
            "ratio": spread([f / v for f, v in zip(self.floor, self.views, strict=True)]),
            "seconds_per_pair": self.views,
            "floor_seconds": self.floor,
            "parts_seconds": self.parts,
        }


def measure_throughput(
    cfg: CfgNode, records: Sequence[dict[str, Any]], num_rounds: int, seed: int
) -> Throughput:
    """Make two views of each image, and in turn do the least that has to be done for it.

    That is to decode it by OpenCV and to resize it to the sizes of both views, bilinearly. Time
    is that of the processor, so that other programs on the machine disturb little.

    Args:
        cfg: the recipe of the views.
        records: images, dicts with `file_name` and `image_id`.
        num_rounds: rounds over all images, 2 or more; each draws other views.
        seed: decides the draws.
    """
    make_views = TwoViewMapper(cfg)
    floor, views = [], []
    keep_freed_memory()
    with _one_thread():
        _run_round(make_views, records, seed)
        for number in range(1, num_rounds + 1):
            seconds = _run_round(make_views, records, seed + number * len(records))
            floor.append(seconds[0])
            views.append(seconds[1])
        parts = _measure_parts(make_views, records, seed)
    return Throughput(floor, views, parts)


def _run_round(
    make_views: TwoViewMapper, records: Sequence[dict[str, Any]], seed: int
) -> tuple[float, float]:
    """CPU seconds per image of the floor and of two views."""
    floor = views = 0.0
    for index, record in enumerate(records):
        start = time.process_time()
        pair = make_views(record, seed + index)
        middle = time.process_time()
        sizes = [tuple(pair[name]["image"].shape[:0:-1]) for name in ("weak", "strong")]
        before_floor = time.process_time()
        decode_and_resize(record["file_name"], sizes)
        floor += time.process_time() - before_floor
        views += middle - start
    return floor / len(records), views / len(records)


def decode_and_resize(file_name: str, sizes: Sequence[tuple[int, int]]) -> None:
    """Decode an image and resize it to each (width, height)."""
    image = cv2.imread(file_name, cv2.IMREAD_COLOR)
    for size in sizes:
        cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def _measure_parts(
    make_views: TwoViewMapper, records: Sequence[dict[str, Any]], seed: int
) -> dict[str, float]:
    clock = PhaseClock(torch.device("cpu"))
    with _attached(clock):
        steps = [
            _quickest(clock, lambda i=i, record=record: make_views(record, seed + i))
            for i, record in enumerate(records)
        ]
    names = dict.fromkeys(name for step in steps for name in step)
    return {name: statistics.mean(step.get(name, 0.0) for step in steps) for name in names}


def _quickest(clock: PhaseClock, step: Callable[[], object]) -> dict[str, float]:
    """The seconds of the repetition that other programs disturbed least."""
    return min((clock.measure(step) for _ in range(REPEATS)), key=lambda seconds: seconds[TOTAL])


@contextmanager
def _attached(clock: PhaseClock) -> Iterator[None]:
    """Inside the block, the clock measures `PARTS`."""
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in PARTS]
    try:
        for owner, name, part in PARTS:
            clock.attach(owner, name, part)
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Inside the block OpenCV and torch use one thread, as in the workers of a loader."""
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before[0])
        torch.set_num_threads(before[1])
