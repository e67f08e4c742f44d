"""A digest of what a training reads: other data, another digest."""

import functools
import hashlib
import os
from collections.abc import Collection
from pathlib import Path

from detectron2.config import CfgNode

from soft_teacher.data import resolve_dataset_names
from soft_teacher.data.image_sources import find_images
from soft_teacher.data.pseudo_label_files import pseudo_label_files
from soft_teacher.data.registry import (
    annotation_file,
    image_root,
    is_custom,
    register_custom_datasets,
)

CHUNK = 1 << 20


def digest_of_inputs(cfg: CfgNode, made_by_others: Collection[str] = ()) -> str:
    """A digest of the annotations of a config's sets, of its pseudo labels and weights.

    Pixels are not read: images are known by their names.

    Args:
        cfg: DATASETS name the sets. Weights and pseudo labels that are no local file are left out.
        made_by_others: files that are left out, because another training makes them.

    Raises:
        ValueError: an annotation file is not there.
    """
    register_custom_datasets(cfg)
    labeled, unlabeled = resolve_dataset_names(cfg)
    names = (*labeled, *(unlabeled if cfg.SOFT_TEACHER.ENABLED else ()), *cfg.DATASETS.TEST)
    digest = hashlib.sha256()
    for name in dict.fromkeys(names):
        digest.update(_digest_of_set(name).encode())
    weights = (cfg.MODEL.WEIGHTS, cfg.MODEL.TIMM.WEIGHTS, cfg.MODEL.SWIN.WEIGHTS)
    for path in (*weights, *pseudo_label_files(cfg)):
        if path not in made_by_others and os.path.isfile(path):
            digest.update(_digest_of_file(path).encode())
    return digest.hexdigest()


def _digest_of_set(name: str) -> str:
    path = annotation_file(name)
    if path is None:
        # Of a set that is a function nothing is known but its name.
        text = "\n".join(find_images(image_root(name))) if is_custom(name) else name
        return hashlib.sha256(text.encode()).hexdigest()
    if not os.path.isfile(path):
        raise ValueError(
            f"The set {name} in DATASETS needs {path}, which is not there; make it, or see to "
            "DETECTRON2_DATASETS and DATASETS.CUSTOM."
        )
    return _digest_of_file(path)


def _digest_of_file(path: str) -> str:
    status = os.stat(path)
    return _read_digest(path, status.st_mtime_ns, status.st_size)


@functools.cache
def _read_digest(path: str, changed: int, size: int) -> str:
    """Of a file's content, which is read again when the file has changed."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as f:
        while chunk := f.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
