"""Export: a detector's computation in one file, TorchScript or ONNX, by Detectron2's tracing.

Detectron2's way is `TracingAdapter`, which gives a model plain tensors in and out, and torch's
exporters of traced models. Tracing can go wrong without an error: what depended on the example may
be fixed in the file. So each file is run before it gets its name, on images of other sizes too,
and must find what the model finds.
"""

import importlib
import importlib.util
import io
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.structures import Instances
from torch import Tensor, nn

from soft_teacher.config import head_section, without_weights
from soft_teacher.engine.atomic_file import open_atomically
from soft_teacher.engine.export import read_model
from soft_teacher.engine.model_classes import known_categories
from soft_teacher.engine.traced_check import Agreement, compare_detections

# The first in which RoIAlign knows half-pixel offsets. With 11, which Detectron2 names as
# STABLE_ONNX_OPSET_VERSION, other scores and boxes come out.
ONNX_OPSET = 16
METADATA = "detector.json"
"""Name of the facts about the detector: of an extra file in TorchScript, of a property in ONNX."""

Run = Callable[[Tensor], tuple[Tensor, ...]]


def export_traced(
    checkpoint: Path, model: str, cfg: CfgNode, file: Path, form: str, images: list[Tensor]
) -> Agreement:
    """Write a model of a checkpoint as a file that runs without Detectron2 and this project.

    The file takes one image, float32 (3, H, W) of any size, 0 to 255, in the channel order
    INPUT.FORMAT and resized as for the model, and gives the tensors that its metadata name.

    Args:
        checkpoint: file that training saved.
        model: "student" or "teacher".
        cfg: the config of that training. MODEL.DEVICE is where a TorchScript file will run.
        file: to write.
        form: "torchscript" or "onnx".
        images: to try it on; the first one is the example to trace. Of several sizes.

    Returns:
        How well the file agrees with the model.

    Raises:
        ValueError: the checkpoint has no such model, a package is missing, or the model cannot be
            traced, or not without finding other objects. No file is written then.
    """
    if form == "onnx":
        _require_packages("onnx", "onnxruntime")
        cfg = cfg.clone()
        cfg.defrost()
        # Where onnxruntime computes too: a GPU rounds otherwise.
        cfg.MODEL.DEVICE = "cpu"
    detector = _load_detector(checkpoint, model, cfg)
    images = [x.to(detector.device) for x in images]
    facts = _facts(cfg, checkpoint)
    with _refusal(f"{cfg.MODEL.META_ARCHITECTURE} with {cfg.MODEL.BACKBONE.NAME}", form):
        adapter = TracingAdapter(detector, [{"image": images[0]}], _detect).eval()
        adapter(*adapter.flattened_inputs)  # notes what comes out
        facts["outputs"] = _output_names(adapter)
        data, run = _FORMATS[form](adapter, facts)
        agreement = _compare(adapter, run, images, facts)
    if not agreement.is_close:
        raise ValueError(
            f"As {form} this model finds other objects than it does itself: {agreement}. No file "
            "is written; use the weights (--format weights)."
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    with open_atomically(str(file)) as stream:
        stream.write(data)
    return agreement


def _load_detector(checkpoint: Path, model: str, cfg: CfgNode) -> nn.Module:
    cfg = cfg.clone()
    cfg.defrost()
    # As in exported weights. A trace would hold as many turns of its loop as its example has boxes.
    cfg.MODEL.ROI_HEADS.SOFT_NMS.ENABLED = False
    # The checkpoint has the backbone's as well.
    detector = build_model(without_weights(cfg)).eval()
    state = read_model(checkpoint, model)
    try:
        detector.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"{checkpoint} is not of the model that the config describes, give its own by "
            f"--config-file: {error}"
        ) from error
    return detector


def _facts(cfg: CfgNode, checkpoint: Path) -> dict[str, Any]:
    """What one has to know to use the file."""
    return {
        "image_format": cfg.INPUT.FORMAT,
        "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
        "score_threshold": cfg.MODEL[head_section(cfg)].SCORE_THRESH_TEST,
        "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        "categories": known_categories(cfg, checkpoint),
    }


def _detect(model: nn.Module, views: list[dict]) -> list[dict[str, Instances]]:
    """Detections in the frame of the image as the model sees it."""
    if isinstance(model, GeneralizedRCNN):
        # Masks stay 28 x 28: to paste them takes loops over the objects.
        return [{"instances": model.inference(views, do_postprocess=False)[0]}]
    return model(views)


def _output_names(adapter: TracingAdapter) -> list[str]:
    (image,) = adapter.outputs_schema.schemas
    (instances,) = image.schemas
    return [*instances.keys, "image_size"]


@contextmanager
def _refusal(what: str, form: str) -> Iterator[None]:
    """Turn the errors of the exporters into one that says what was tried."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # Of deprecation, and of places where tracing may go wrong, which is looked at.
            warnings.simplefilter("ignore")
            yield
    except (RuntimeError, TypeError, ValueError) as error:
        # Torch puts what it was doing first, and what went wrong last.
        lines = [x.strip() for x in str(error).splitlines() if x.strip()]
        reason = " ... ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))
        raise ValueError(
            f"{what} cannot be exported as {form} for images of any size: tried was Detectron2's "
            f"TracingAdapter with torch's exporter, which says: {reason} Use the weights (--format "
            "weights)."
        ) from error


def _to_torchscript(adapter: TracingAdapter, facts: dict[str, Any]) -> tuple[bytes, Run]:
    """The content of the file, and what runs it."""
    traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer, _extra_files={METADATA: json.dumps(facts)})
    return buffer.getvalue(), traced


def _to_onnx(adapter: TracingAdapter, facts: dict[str, Any]) -> tuple[bytes, Run]:
    """The content of the file, and what runs it."""
    onnx, runtime = map(importlib.import_module, ("onnx", "onnxruntime"))
    names = facts["outputs"]
    of_detections = {name: {0: "detections"} for name in names if name != "image_size"}
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/detector.onnx"
        torch.onnx.export(
            adapter,
            adapter.flattened_inputs,
            file,
            # The newer exporter stops where something depends on the size of the image.
            dynamo=False,
            opset_version=ONNX_OPSET,
            input_names=["image"],
            output_names=names,
            dynamic_axes={"image": {1: "height", 2: "width"}, **of_detections},
        )
        model = onnx.load(file)
    onnx.helper.set_model_props(model, {METADATA: json.dumps(facts)})
    onnx.checker.check_model(model)
    data = model.SerializeToString()
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(image: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(None, {"image": image.cpu().numpy()})))

    return data, run


_FORMATS = {"torchscript": _to_torchscript, "onnx": _to_onnx}


def _require_packages(*names: str) -> None:
    missing = [x for x in names if importlib.util.find_spec(x) is None]
    if missing:
        raise ValueError(
            f"ONNX files are written and checked with packages that are not there, "
            f"{' and '.join(missing)}: pip install onnx onnxruntime"
        )


def _compare(adapter: TracingAdapter, run: Run, images: list[Tensor], facts: dict) -> Agreement:
    names, threshold = facts["outputs"], facts["score_threshold"]
    return sum(
        (
            compare_detections(
                dict(zip(names, run(image), strict=True)),
                dict(zip(names, adapter(image), strict=True)),
                threshold,
                facts["max_detections"],
            )
            for image in images
        ),
        Agreement(),
    )
