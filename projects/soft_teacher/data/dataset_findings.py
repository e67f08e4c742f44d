"""What a person should know of a set before training on it, and what to do about it."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from soft_teacher.data.dataset_scan import LEFT_LYING, TURNED, ScannedImage, stated_size
from soft_teacher.data.datasets import missing_files
from soft_teacher.data.duplicates import SharedImages, copies
from soft_teacher.data.problems import Problems
from soft_teacher.data.set_aside import MAX_IN_A_ROW
from soft_teacher.data.set_statistics import ObjectStatistics

STOPS, LOOK, NOTE = "stops training", "look at this", "good to know"
"""How much a finding matters."""

LABELED, UNLABELED, TEST = "labeled", "unlabeled", "test"
"""What a set is for."""

SMALLEST_SIDE, LARGEST_SIDE, LARGEST_AREA = 10, 12_000, 100_000_000
"""Images with a side below or above, or with more pixels, are reported."""

# Pillow's modes beside RGB. "I" is how it reads 16-bit PNG files, too.
_MODES = {
    "gray": (("1", "L"), "They are read as color images with three equal channels."),
    "palette": (("P",), "They are read as color images."),
    "alpha": (
        ("LA", "La", "PA", "RGBA", "RGBa"),
        "Transparency is dropped: what lies below transparent pixels becomes visible.",
    ),
    "CMYK": (("CMYK",), "They are converted to RGB without a color profile."),
    "16-bit": (
        ("I", "I;16", "I;16B", "I;16L", "I;16N"),
        "Their upper 8 bits are kept. If the values use only few of the 16 bits, the images come "
        "out dark: stretch and convert them to 8 bits.",
    ),
}
_READ_FROM_FILE = "See that the file is where the set says, and complete; then check again. "


@dataclass(frozen=True)
class Finding:
    """One kind of thing that was found.

    Attributes:
        kind: what, in a few words that follow a number.
        level: `STOPS`, `LOOK` or `NOTE`.
        count: how often.
        advice: what follows from it and what to do.
        places: where; all of them, but for problems of annotation files: a few.
    """

    kind: str
    level: str
    count: int
    advice: str
    places: list[str] = field(default_factory=list)


def refusal(message: str) -> Finding:
    """An error that ends training when it starts; its message says what to do."""
    return Finding("refused", STOPS, 1, "Training ends with this message.", [message])


def unmeasured_finding(message: str) -> Finding:
    """Annotations of an unlabeled set that nothing can be compared with."""
    advice = "Training does without them, and does not measure the quality of pseudo labels there."
    return Finding("annotations of other classes or another form", LOOK, 1, advice, [message])


def problem_findings(problems: Problems) -> list[Finding]:
    """What was mended or left out while an annotation file was read."""
    advice = "Training goes on with what is left; correct the annotation file if that is not right."
    return [Finding(k, LOOK, p.count, advice, p.examples) for k, p in problems.items()]


def unreadable_findings(
    records: list[dict[str, Any]], scans: list[ScannedImage], read: list[bool], role: str
) -> list[Finding]:
    """Missing and unreadable images, in the words of what follows for a set of this role.

    Args:
        records: of the set.
        scans: of its images.
        read: whether training or evaluation reads the image at all.
        role: of the set.
    """
    missing = set(missing_files(records))
    findings = []
    for kind, is_missing in (("missing images", True), ("unreadable images", False)):
        bad = [
            (scan.error, wanted)
            for record, scan, wanted in zip(records, scans, read, strict=True)
            if scan.error and (record["file_name"] in missing) == is_missing
        ]
        harmful, harmless = ([x for x, wanted in bad if wanted == is_read] for is_read in (1, 0))
        if role == UNLABELED:
            advice = "Training sets them aside and takes the next image of the set instead."
            findings.append(_places(kind, LOOK, _READ_FROM_FILE + advice, harmful))
        else:
            advice = "Or take the image and its annotations out of the set: nothing replaces it."
            findings.append(_places(kind, STOPS, _READ_FROM_FILE + advice, harmful))
        advice = "They are never read, since they have no object."
        findings.append(_places(f"{kind} that are left out", NOTE, advice, harmless))
    return [x for x in findings if x.count]


def unreadable_run_findings(unreadable: list[bool]) -> list[Finding]:
    """Unlabeled images that cannot be replaced, since those after them cannot be read either.

    Args:
        unreadable: of all unlabeled images, in training's order; the first follows the last.
    """
    longest = run = 0
    for is_unreadable in unreadable * 2:
        run = run + 1 if is_unreadable else 0
        longest = max(longest, run)
    longest = min(longest, len(unreadable))
    if not unreadable or longest < min(len(unreadable), MAX_IN_A_ROW):
        return []
    advice = f"Training ends when {MAX_IN_A_ROW} in a row, or all there are, cannot be read."
    return [Finding("unreadable unlabeled images in a row", STOPS, longest, advice)]


def image_findings(
    records: list[dict[str, Any]], scans: list[ScannedImage], read: list[bool], role: str
) -> list[Finding]:
    """What is noteworthy of the images that can be read; arguments as `unreadable_findings`."""
    names = [record["file_name"] for record in records]

    def those(kind: str, level: str, advice: str, holds: Callable[[ScannedImage], bool]) -> Finding:
        found = [x for x, scan in zip(names, scans, strict=True) if scan.size and holds(scan)]
        return _places(kind, level, advice, found)

    findings = [
        *_size_findings(records, scans, read, role),
        those(
            f"images under {SMALLEST_SIDE} pixels a side",
            LOOK,
            "They are enlarged to the training size like all others; icons and placeholders of "
            "failed downloads are better taken out.",
            lambda scan: min(scan.size) < SMALLEST_SIDE,
        ),
        those(
            f"images over {LARGEST_SIDE:,} pixels a side or {LARGEST_AREA // 10**6} megapixels",
            LOOK,
            "Decoding them takes much memory and time; shrink them, boxes included.",
            lambda scan: max(scan.size) > LARGEST_SIDE or math.prod(scan.size) > LARGEST_AREA,
        ),
        those(
            "images turned by their EXIF tag",
            NOTE,
            "They are read upright, as most programs show them.",
            lambda scan: scan.exif == TURNED,
        ),
        those(
            "images whose EXIF tag is passed over",
            NOTE,
            "The annotation file states the size without the turn, so the boxes were drawn "
            "without it, and the image is read without it.",
            lambda scan: scan.exif == LEFT_LYING,
        ),
    ]
    for kind, (modes, advice) in _MODES.items():
        findings.append(
            those(f"{kind} images", NOTE, advice, lambda scan, modes=modes: scan.mode in modes)
        )
    return [x for x in findings if x.count]


def copy_findings(names: list[str], scans: list[ScannedImage]) -> list[Finding]:
    """Images of a set that are the same, byte for byte."""
    groups = copies(names, [scan.digest for scan in scans])
    if not groups:
        return []
    return [
        Finding(
            "images that are copies of another one in the set",
            LOOK,
            sum(group.total() - 1 for group in groups),
            "Copies count several times, in training and in evaluation; keep one of each group.",
            [" = ".join(map(_counted, group, group.values())) for group in groups],
        )
    ]


def empty_findings(names: list[str], role: str, filtered: bool) -> list[Finding]:
    """Images without an object.

    Args:
        names: of these images.
        role: of the set.
        filtered: whether training leaves them out.
    """
    advice = "They are kept."
    if role == LABELED:
        what = "left out" if filtered else "kept, and teach what is background"
        advice = (
            f"In training they are {what}; DATALOADER.FILTER_EMPTY_ANNOTATIONS decides. Crowds "
            "do not count as objects."
        )
    finding = _places("images without an object", LOOK if filtered else NOTE, advice, names)
    return [finding] if names else []


def object_findings(objects: ObjectStatistics, role: str) -> list[Finding]:
    """Crowds, and classes that no object belongs to."""
    findings = []
    if objects.crowds:
        advice = {
            LABELED: "They are no objects to learn from.",
            TEST: "Detections on them count neither as right nor as wrong.",
            UNLABELED: "They count as no objects when pseudo labels are measured.",
        }
        findings.append(Finding("crowd annotations", NOTE, objects.crowds, advice[role]))
    unseen = [x.name for x in objects.classes if not x.objects]
    if unseen:
        advice = (
            "A class that no labeled image shows cannot be learned; one that no test image shows "
            "has no AP. Take it out of the categories, or add images."
        )
        findings.append(_places("classes without an object", LOOK, advice, unseen))
    return findings


def shared_findings(first: str, second: str, shared: SharedImages) -> list[Finding]:
    """Images that sets of two roles have in common."""
    advice = f"Results on them say little: keep them in the {first} or in the {second} sets."
    both = f"images both {first} and {second}"
    findings = [
        _places(f"{both}: the same file", LOOK, advice, shared.same_path),
        _places(f"{both}: copies", LOOK, advice, shared.same_content),
        _places(
            f"{both}: the same id, file name and size, other bytes",
            LOOK,
            f"{advice} If they show different things, give them different names.",
            shared.same_looks,
        ),
    ]
    return [x for x in findings if x.count]


def _size_findings(
    records: list[dict[str, Any]], scans: list[ScannedImage], read: list[bool], role: str
) -> list[Finding]:
    """Images of another size than the annotation file states."""
    harmful, harmless = [], []
    for record, scan, wanted in zip(records, scans, read, strict=True):
        stated = stated_size(record)
        if scan.size is None or stated in (None, scan.size):
            continue
        turned = ", turned by its EXIF tag" if scan.exif == TURNED else ""
        place = f"{record['file_name']}: {_size(scan.size)}{turned}, stated {_size(stated)}"
        (harmful if wanted and role != UNLABELED else harmless).append(place)
    kind = "images of another size than stated"
    return [
        _places(
            kind,
            STOPS,
            "Correct width and height in the annotation file, and the boxes if they were drawn "
            "on a resized image.",
            harmful,
        ),
        _places(
            kind if role == UNLABELED else f"{kind}, left out",
            NOTE,
            "No box depends on it, so training goes on."
            if role == UNLABELED
            else "They are never read, since they have no object.",
            harmless,
        ),
    ]


def _places(kind: str, level: str, advice: str, places: Iterable[str]) -> Finding:
    places = list(places)
    return Finding(kind, level, len(places), advice, places)


def _counted(name: str, count: int) -> str:
    return name if count == 1 else f"{name} ({count} times)"


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"
