"""What an mmdetection checkpoint holds, read without running anything that it names.

mmcv (mmdetection 2.x) and mmengine (3.x) save dicts with `state_dict` and `meta`, and beside them
what a resumed training needs. Logs among that are pickled as objects of theirs and of numpy's,
which `torch.load(weights_only=True)` refuses. They are not wanted here: stand-ins take their
place, which do nothing, whatever the file gives them.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soft_teacher.safe_loading import load_tensors

State = dict[str, Tensor]

MODEL, STUDENT, TEACHER = "model", "student", "teacher"

# What the two libraries' logs are made of. "getattr" is there because mmengine's HistoryBuffer
# names its methods; the stand-in is called in its place as well.
_REPLACED = (
    "builtins.getattr",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
)
_CARRIED = {"state_dict", "meta"}
_REFUSED_GLOBAL = re.compile(r"GLOBAL (\S+) (?:was not an allowed global|whose module)")
_STYLE = re.compile(r"""\bstyle\s*=\s*['"](caffe|pytorch)['"]""")


class _Inert:
    """Stands for a function, a class or an object; takes anything and does nothing with it."""

    __slots__ = ()

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True)
class MMDetFile:
    """Weights and what the file says of them.

    Attributes:
        models: by mmdetection's names, "model" or, of Soft Teacher, "student" and "teacher".
        class_names: in the model's order; None if the file does not name them.
        style: "caffe" or "pytorch" of a ResNet, as the config in the file says; None if it has
            none, or says both.
        left_behind: other parts of the file, such as "optimizer".
    """

    models: dict[str, State]
    class_names: tuple[str, ...] | None
    style: str | None
    left_behind: tuple[str, ...]


def read_mmdet_file(path: Path) -> MMDetFile:
    """Read a checkpoint of mmdetection 2.x or 3.x, or a bare state dict.

    Raises:
        ValueError: the file is damaged, names what is neither a tensor, a plain container nor one
            of the libraries' logs, or has no weights.
    """
    content = _load(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no dict, so it is no checkpoint of mmdetection.")
    state = content.get("state_dict", content)
    if not _is_state(state):
        raise ValueError(
            f"{path} has no 'state_dict' of tensors; give a checkpoint that mmdetection saved, or "
            "a bare state dict."
        )
    parts = content if state is not content else {}
    meta = parts.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    return MMDetFile(
        models=split_models(state),
        class_names=_class_names(meta),
        style=_style(meta),
        left_behind=tuple(sorted(str(x) for x in parts if x not in _CARRIED)),
    )


def split_models(state: State) -> dict[str, State]:
    """A state dict as "model", or by the prefixes "student." and "teacher." as these two.

    Raises:
        ValueError: keys of one model stand among those of student and teacher.
    """
    found: dict[str, State] = {}
    for key, tensor in state.items():
        prefix, _, rest = key.partition(".")
        if prefix in (STUDENT, TEACHER):
            found.setdefault(prefix, {})[rest] = tensor
        else:
            found.setdefault(MODEL, {})[key] = tensor
    if MODEL in found and len(found) > 1:
        raise ValueError(
            "Beside those of 'student.' and 'teacher.' the file has weights that belong to "
            f"neither: {', '.join(found[MODEL])}"
        )
    return found


def _load(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([(_Inert, name) for name in _REPLACED]):
            return load_tensors(str(path))
    except ValueError as error:
        refused = _REFUSED_GLOBAL.search(str(error.__cause__))
        if refused is None:
            raise
        raise ValueError(
            f"{path} names {refused[1]}, which is no part of weights or of mmdetection's logs and "
            "might run code; nothing was loaded. If you trust the file, load it where it was made "
            "and save torch.save({'state_dict': ..., 'meta': {'CLASSES': [...]}}) anew."
        ) from error


def _is_state(state: Any) -> bool:
    return (
        isinstance(state, dict)
        and len(state) > 0
        and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items())
    )


def _class_names(meta: dict) -> tuple[str, ...] | None:
    """2.x has them as meta["CLASSES"], 3.x in meta["dataset_meta"], in small letters since 3.0."""
    described = meta.get("dataset_meta")
    described = described if isinstance(described, dict) else {}
    for names in (described.get("classes"), described.get("CLASSES"), meta.get("CLASSES")):
        if isinstance(names, str):
            return (names,)
        if isinstance(names, list | tuple) and names and all(isinstance(x, str) for x in names):
            return tuple(names)
    return None


def _style(meta: dict) -> str | None:
    """The text of the training's config is meta["config"] in 2.x and meta["cfg"] in 3.x."""
    text = "".join(x for x in (meta.get("config"), meta.get("cfg")) if isinstance(x, str))
    styles = set(_STYLE.findall(text))
    return styles.pop() if len(styles) == 1 else None
