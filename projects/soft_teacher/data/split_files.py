"""Other people's choices of labeled images, in the forms that are passed around.

- A COCO file of the labeled images, such as those of github.com/microsoft/SoftTeacher.
- `COCO_supervision.txt` of github.com/facebookresearch/unbiased-teacher: percentage -> seed ->
  indices into the images sorted by id, those without an object left out before.
- A list of image ids: a JSON list, or text with white space or commas between.
"""

import json
from pathlib import Path
from typing import Any


def read_split_file(
    path: Path, annotated_ids: list[int], percents: list[float], folds: list[int]
) -> dict[tuple[float, int] | None, set[int]]:
    """Read the labeled ids of one or more splits.

    Args:
        path: the file.
        annotated_ids: sorted ids of the images with an object, in the file that is to be split.
        percents: which percentages are wanted of a file of many.
        folds: which folds or seeds are wanted of a file of many.

    Returns:
        (percent, fold) -> labeled ids; or None -> labeled ids for a file of one split.

    Raises:
        ValueError: the file has another form, or lacks a wanted split.
    """
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        content = text.replace(",", " ").split()
    if isinstance(content, dict) and isinstance(content.get("images"), list):
        return {None: {image["id"] for image in content["images"]}}
    if isinstance(content, dict):
        return {
            (percent, fold): _ids_at(_indices(content, percent, fold, path), annotated_ids, path)
            for percent in percents
            for fold in folds
        }
    return {None: _as_ids(content, path)}


def _as_ids(values: Any, path: Path) -> set[int]:
    try:
        return {int(value) for value in (values if isinstance(values, list) else [values])}
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is neither a COCO file, nor a table of indices by percentage and seed, nor a "
            f"list of image ids: {error}."
        ) from error


def _indices(content: dict[str, Any], percent: float, fold: int, path: Path) -> list[int]:
    """The entry of a table whose percentages may be written 1, 1.0 or 01."""
    for key, by_fold in content.items():
        if _is_number(key, percent) and isinstance(by_fold, dict) and str(fold) in by_fold:
            return by_fold[str(fold)]
    known = {key: sorted(x) for key, x in content.items() if isinstance(x, dict)}
    raise ValueError(
        f"{path} has no split of {percent:g} % with the seed {fold}; it has {known or 'none'}."
    )


def _is_number(text: str, number: float) -> bool:
    try:
        return float(text) == number
    except ValueError:
        return False


def _ids_at(indices: list[int], annotated_ids: list[int], path: Path) -> set[int]:
    largest = max(indices, default=-1)
    if largest >= len(annotated_ids):
        raise ValueError(
            f"{path} has the index {largest}, but only {len(annotated_ids)} images have an object; "
            "take the annotation file that it was made for, instances_train2017.json."
        )
    return {annotated_ids[i] for i in indices}
