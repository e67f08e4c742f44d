"""Where a step makes the host wait for the device.

On a GPU the host runs ahead and queues work. It has to stop where it needs a value: to branch on
it, to log it, or to know how many rows a mask leaves. The places are the same without a GPU, so
they are counted on the CPU.
"""

import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import detectron2
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import soft_teacher

aten = torch.ops.aten

# What gives the host a number, or an output whose size depends on values.
_WAITING = {
    aten._local_scalar_dense.default: "read of a number",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "mask",
    aten._unique2.default: "unique",
    aten.equal.default: "comparison",
}
# Reads of whole tensors, which do not show as operations on the CPU.
_COPYING = ("tolist", "cpu", "numpy")

_SOURCES = {Path(x.__file__).parent: x.__name__ for x in (soft_teacher, detectron2)}


def count_host_reads(run: Callable[[], object]) -> dict[str, Counter[str]]:
    """Run something once and count where the host would wait for a GPU.

    Returns:
        "soft_teacher", "detectron2" or "other", the package whose line asked, itself or through a
        library -> "file:function kind" -> how often.
    """
    found: dict[str, Counter[str]] = {}
    with _CopyCounter(found), _OperationCounter(found):
        run()
    return found


class _OperationCounter(TorchDispatchMode):
    """Counts operations whose result the host needs."""

    def __init__(self, found: dict[str, Counter[str]]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kind = _WAITING.get(func) or _waits_by_its_arguments(func, args, kwargs or {})
        if kind:
            _note(self._found, kind)
        return func(*args, **(kwargs or {}))


class _CopyCounter(TorchFunctionMode):
    """Counts copies of tensors to the host."""

    def __init__(self, found: dict[str, Counter[str]]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in _COPYING:
            _note(self._found, "copy")
        return func(*args, **(kwargs or {}))


def _waits_by_its_arguments(func, args: tuple, kwargs: dict) -> str | None:
    """What kind of waiting these arguments make of an operation, or None."""
    if func is aten.index.Tensor and _has_mask(args[1]):
        return "mask"
    # A number in the place of a mask is filled in without knowing how many there are.
    if func is aten.index_put_.default and _has_mask(args[1]) and args[2].dim() > 0:
        return "mask"
    if func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
        return "repeat_interleave"
    return "NMS" if func.name().startswith("torchvision::nms") else None


def _has_mask(indices: list[Tensor | None]) -> bool:
    return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in indices)


def _note(found: dict[str, Counter[str]], kind: str) -> None:
    """Count for the innermost line of a package that is told apart, this module aside."""
    source, place = "other", kind
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        root = next((x for x in _SOURCES if x in path.parents and path != Path(__file__)), None)
        if root is not None:
            source, place = _SOURCES[root], f"{path.relative_to(root)}:{frame.name} {kind}"
            break
    found.setdefault(source, Counter())[place] += 1
