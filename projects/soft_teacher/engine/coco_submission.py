"""Result files as COCO's evaluation server takes them, from what Detectron2's evaluator writes.

The server takes one zip for each task, which holds one JSON file of a prescribed name. Entries are
those of `COCOEvaluator` (coco_instances_results.json), which has boxes and masks in one list.
"""

import json
import math
import re
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soft_teacher.engine.atomic_file import open_atomically

TASKS = {"bbox": "bbox", "segm": "segmentation"}
"""Task -> the key of an entry that it is about."""
MAX_DETECTIONS = 100
"""Of an image; the server does not look at more."""

Entry = dict[str, Any]


@dataclass(frozen=True)
class ImageSet:
    """The images that are to be evaluated.

    Attributes:
        name: as the server calls it, such as test-dev2017.
        sizes: image id -> (height, width).
        categories: ids.
    """

    name: str
    sizes: dict[int, tuple[int, int]]
    categories: frozenset[int]


def read_image_set(path: Path, name: str | None = None) -> ImageSet:
    """Read COCO's image info, such as image_info_test-dev2017.json.

    Args:
        path: the file; annotations in it are not looked at.
        name: of the set; None for what follows "image_info_" or "instances_" in the file's name.

    Raises:
        ValueError: the name does not tell, or the file lacks images or categories.
    """
    found = re.fullmatch(r"(?:image_info|instances)_(.+)", path.stem)
    if name is None and found is None:
        raise ValueError(f"The name of {path} does not tell what set it is; give --set.")
    content = _read_json(path)
    if not isinstance(content, dict) or not content.get("images") or not content.get("categories"):
        raise ValueError(f"{path} has no images or no categories; take COCO's own file.")
    return ImageSet(
        name or found[1],
        {x["id"]: (x["height"], x["width"]) for x in content["images"]},
        frozenset(x["id"] for x in content["categories"]),
    )


def read_results(path: Path) -> list[Entry]:
    """The entries of Detectron2's coco_instances_results.json.

    Raises:
        ValueError: it is no list of entries, or empty.
    """
    entries = _read_json(path)
    if not isinstance(entries, list) or not all(isinstance(x, dict) for x in entries):
        raise ValueError(f"{path} is no list of detections; take coco_instances_results.json.")
    if not entries:
        raise ValueError(f"{path} holds no detection; evaluate a trained model.")
    return entries


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"There is no file {path}.") from error
    except ValueError as error:
        raise ValueError(f"{path} is no complete JSON: {error}.") from error


def tasks_of(entries: list[Entry]) -> list[str]:
    """The tasks that the entries hold results for; masks are those of all or of none."""
    return [task for task, key in TASKS.items() if key in entries[0]]


def entries_of_task(entries: list[Entry], task: str, images: ImageSet) -> list[Entry]:
    """Checked entries with the keys of one task alone.

    Evaluation of masks must not see boxes: it would take the areas of these.

    Raises:
        ValueError: an entry is not what the server takes; the message has its place and the reason.
    """
    key, checked = TASKS[task], []
    counts: Counter[int] = Counter()
    for number, entry in enumerate(entries):
        reason = _reason_against(entry, key, images)
        if reason is not None:
            raise ValueError(f"Detection {number} cannot be handed in: {reason}.")
        counts[entry["image_id"]] += 1
        checked.append({k: entry[k] for k in ("image_id", "category_id", key, "score")})
    image, most = counts.most_common(1)[0]
    if most > MAX_DETECTIONS:
        raise ValueError(
            f"Image {image} has {most} detections, but {MAX_DETECTIONS} are looked at; set "
            f"TEST.DETECTIONS_PER_IMAGE to {MAX_DETECTIONS}."
        )
    return checked


def _reason_against(entry: Entry, key: str, images: ImageSet) -> str | None:
    missing = [x for x in ("image_id", "category_id", key, "score") if x not in entry]
    if missing:
        return f"it has no {', '.join(missing)}"
    if entry["image_id"] not in images.sizes:
        return f"image {entry['image_id']} is not one of {images.name}"
    if entry["category_id"] not in images.categories:
        return f"there is no category {entry['category_id']}"
    if not _is_number(entry["score"]) or not 0 <= entry["score"] <= 1:
        return f"its score is {entry['score']}, which must lie in 0 to 1"
    size = images.sizes[entry["image_id"]]
    return (
        _reason_against_box(entry[key], size)
        if key == "bbox"
        else _reason_against_mask(entry[key], size)
    )


def _reason_against_box(box: Any, size: tuple[int, int]) -> str | None:
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        return f"its bbox is {box}, which must be four finite numbers, x, y, width and height"
    x, y, width, height = box
    # Corners are float32, so their sums may go a little beyond.
    inside = x >= -1 and y >= -1 and x + width <= size[1] + 1 and y + height <= size[0] + 1
    if width < 0 or height < 0 or not inside:
        return f"its bbox {box} is not inside the image of {size[1]} x {size[0]}"
    return None


def _reason_against_mask(mask: Any, size: tuple[int, int]) -> str | None:
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str):
        return "its segmentation is no compressed run-length code"
    if list(mask.get("size", ())) != list(size):
        return f"its segmentation is for {mask.get('size')}, the image's size is {list(size)}"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def write_submission(entries: list[Entry], images: ImageSet, method: str, folder: Path) -> Path:
    """Write detections_SET_METHOD_results.zip, with the JSON file of the same name in it.

    Args:
        entries: of one task.
        images: the set.
        method: name of the method.
        folder: where to, is made.

    Returns:
        The zip.

    Raises:
        ValueError: `method` has characters other than letters, digits, "_", "." and "-".
    """
    if not re.fullmatch(r"[\w.-]+", method, re.ASCII):
        raise ValueError(
            f"The method's name is {method!r}; use letters, digits, underscores, dots and hyphens."
        )
    stem = f"detections_{images.name}_{method}_results"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.zip"
    with (
        open_atomically(str(path)) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        archive.writestr(f"{stem}.json", json.dumps(entries, allow_nan=False))
    return path
