"""Reading annotation files in COCO's format, good and bad ones.

What can be mended or left out is counted in `Problems`; what leaves no sensible way on is a
`ValueError` that names the file. On a clean file the records are those of Detectron2's
`load_coco_json`.
"""

import json
from dataclasses import dataclass
from typing import Any

from detectron2.utils.file_io import PathManager

from soft_teacher.data.coco_annotations import (
    Record,
    as_key,
    clean_annotation,
    drop_segmentation,
    is_evaluated_as_meant,
    is_size,
    note_repeated_ids,
    score_of,
)
from soft_teacher.data.image_paths import image_path
from soft_teacher.data.image_sizes import image_sizes
from soft_teacher.data.problems import Problems


@dataclass
class CocoSet:
    """An annotated set.

    Attributes:
        records: dicts in Detectron2's dataset format, sorted by image id; `category_id` counts
            in `classes`.
        classes: names of the classes.
        id_to_class: category id in the file -> index in `classes`.
        problems: what was mended or left out.
        evaluable: whether pycocotools can evaluate with the file as it is and means the same by it.
    """

    records: list[Record]
    classes: list[str]
    id_to_class: dict[int, int]
    problems: Problems
    evaluable: bool


def load_coco_set(
    json_file: str,
    image_root: str,
    classes: list[str] | None = None,
    masks: bool = True,
    scored: bool = False,
) -> CocoSet:
    """Read an annotated set.

    Args:
        json_file: file in COCO's instance format.
        image_root: folder that the file's image names start from.
        classes: names that the categories are matched with; None takes the file's own, sorted by
            their ids.
        masks: whether segmentations are kept. Without them a large file takes far less memory.
        scored: whether the file holds pseudo labels: all annotations must have a `score` then,
            and keep it. Otherwise scores are passed over.

    Raises:
        ValueError: the file is no COCO file, its categories have other names than `classes`, an
            image lies outside of `image_root`, or a score is missing.
    """
    keys = ("images", "annotations", "categories")
    content = read_coco_content(json_file, keys, masks)
    problems = Problems()
    own_ids, own_names = _categories(content["categories"], json_file)
    classes = own_names if classes is None else list(classes)
    _check_names(own_names, classes, json_file)
    id_to_class = {i: classes.index(name) for i, name in zip(own_ids, own_names, strict=True)}
    records = _image_records(content["images"], json_file, image_root, problems, unique_ids=True)
    for record in records:
        record["annotations"] = []
    by_id = {record["image_id"]: record for record in records}
    note_repeated_ids(content["annotations"], problems)
    for annotation in content["annotations"]:
        record = by_id.get(as_key(annotation.get("image_id")))
        cleaned = clean_annotation(annotation, record, id_to_class, problems)
        if cleaned is not None:
            if scored:
                cleaned["score"] = score_of(annotation, json_file)
            record["annotations"].append(cleaned)
    evaluable = (
        not problems
        and own_names == classes
        and "info" in content
        and all(map(is_evaluated_as_meant, content["annotations"]))
    )
    return CocoSet(records, classes, id_to_class, problems, evaluable)


def load_categories(json_file: str) -> list[dict[str, Any]]:
    """Id and name of each category of a COCO file, sorted by id.

    Raises:
        ValueError: the file has no list of categories, or two are the same.
    """
    categories = read_coco_content(json_file, ("categories",), masks=False)["categories"]
    ids, names = _categories(categories, json_file)
    return [{"id": i, "name": name} for i, name in zip(ids, names, strict=True)]


def load_image_records(json_file: str, image_root: str) -> tuple[list[Record], Problems]:
    """Read the images of a COCO file, sorted by id, and nothing else of it.

    The file needs neither "annotations" nor "categories".

    Returns:
        Dicts of `file_name` (with `image_root`), `image_id` and, where known, `height` and
        `width`; and what was mended or left out.

    Raises:
        ValueError: the file has no list of images, or one lies outside of `image_root`.
    """
    problems = Problems()
    images = read_coco_content(json_file, ("images",), masks=False)["images"]
    return _image_records(images, json_file, image_root, problems, unique_ids=False), problems


def read_coco_content(json_file: str, keys: tuple[str, ...], masks: bool = True) -> dict[str, Any]:
    """The content of a file that has lists of objects under the given keys.

    Args:
        json_file: the file.
        keys: what the file must have.
        masks: False replaces each segmentation by whether it is a valid one, while reading.

    Raises:
        ValueError: it is missing, broken, or something else; the message names the file.
    """
    try:
        with PathManager.open(json_file, encoding="utf-8") as file:
            content = json.load(file, object_hook=None if masks else drop_segmentation)
    except FileNotFoundError as error:
        raise ValueError(
            f"There is no file {json_file}; check its path in the config. COCO is looked for below "
            "DETECTRON2_DATASETS, its splits are written by tools/split_dataset.py, and the demo's "
            "digits by `make demo`."
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{json_file} is not a complete JSON file: {error}. Write or download it again."
        ) from error
    for key in keys:
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(x, dict) for x in entries):
            raise ValueError(
                f"{json_file} is not in COCO's format: it has no list of {key}. Expected is an "
                f"object with {', '.join(keys)}."
            )
    return content


def _categories(categories: list[dict], json_file: str) -> tuple[list[int], list[str]]:
    """Ids and names, sorted by id; ids may be sparse and in any order."""
    for category in categories:
        if not isinstance(category.get("id"), int) or not isinstance(category.get("name"), str):
            raise ValueError(f"{json_file}: the category {category} needs an integer id and a name")
    ordered = sorted(categories, key=lambda category: category["id"])
    ids, names = ([category[key] for category in ordered] for key in ("id", "name"))
    for values in (ids, names):
        repeated = sorted({x for x in values if values.count(x) > 1})
        if repeated:
            raise ValueError(f"{json_file}: several categories share {repeated}; tell them apart.")
    if not ids:
        raise ValueError(f"{json_file} lists no categories; add those of its annotations.")
    return ids, names


def _check_names(own: list[str], classes: list[str], json_file: str) -> None:
    extra = [name for name in own if name not in classes]
    missing = [name for name in classes if name not in own]
    if extra or missing:
        raise ValueError(
            f"{json_file} has other categories than the labeled set: only here {extra}, only "
            f"there {missing}. Give both the same names; their ids and order do not matter."
        )


def _image_records(
    images: list[dict], json_file: str, image_root: str, problems: Problems, unique_ids: bool
) -> list[Record]:
    """Records without annotations, sorted by id."""
    records: dict[Any, Record] = {}
    for image in images:
        image_id, name = image.get("id"), image.get("file_name")
        if not isinstance(image_id, int | str) or not isinstance(name, str) or not name:
            problems.note("images without id or file_name, left out", repr(image)[:80])
            continue
        record = {"file_name": image_path(image_root, name, json_file), "image_id": image_id}
        if is_size(image.get("height")) and is_size(image.get("width")):
            record.update(height=image["height"], width=image["width"])
        key = image_id if unique_ids else (image_id, name)
        if key not in records:
            records[key] = record
        elif records[key]["file_name"] == record["file_name"]:
            problems.note("images listed twice, taken once", f"image {image_id}")
        else:
            raise ValueError(
                f"{json_file}: the images {records[key]['file_name']} and {record['file_name']} "
                f"share the id {image_id}, so their annotations cannot be told apart. Give each "
                "image an id of its own."
            )
    _add_sizes([x for x in records.values() if "height" not in x], problems)
    return sorted(records.values(), key=lambda x: (isinstance(x["image_id"], str), x["image_id"]))


def _add_sizes(records: list[Record], problems: Problems) -> None:
    """Read the sizes that the file does not state from the images."""
    sizes = image_sizes([record["file_name"] for record in records])
    for record in records:
        size = sizes[record["file_name"]]
        if size is not None:
            record["height"], record["width"] = size
        problems.note("images without height and width, read from the image", record["file_name"])
