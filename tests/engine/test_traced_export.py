"""TorchScript and ONNX find what the model finds, without this project and Detectron2."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

from one_stage import DETECTORS, excited
from soft_teacher.engine import traced_export
from soft_teacher.engine.traced_export import METADATA, export_traced
from soft_teacher.engine.traced_inputs import example_images
from tiny import tiny_config
from tiny_training import NARROW

RCNN = {**NARROW, "INPUT__MIN_SIZE_TEST": 64, "MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.2}
TIMM = {**RCNN, "MODEL__BACKBONE__NAME": "build_timm_fpn_backbone", "MODEL__TIMM__WEIGHTS": ""}
FAMILIES = {
    "faster_rcnn": RCNN,
    "lite0": {**TIMM, "MODEL__TIMM__NAME": "tf_efficientnet_lite0"},
    "convnext": {
        **TIMM,
        "MODEL__TIMM__NAME": "convnext_atto",
        "MODEL__TIMM__OUT_INDICES": (0, 1, 2, 3),
    },
    "mask_rcnn": {**RCNN, "MODEL__MASK_ON": True},
    "cascade_rcnn": {
        **RCNN,
        "MODEL__MASK_ON": True,
        "MODEL__ROI_HEADS__NAME": "SoftTeacherCascadeROIHeads",
        "MODEL__ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG": True,
    },
    "htc": {
        **RCNN,
        "MODEL__MASK_ON": True,
        "MODEL__ROI_HEADS__NAME": "SoftTeacherHTCROIHeads",
        "MODEL__ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG": True,
        "MODEL__ROI_HTC__SEMANTIC_ON": True,
    },
    "retinanet": {**NARROW, **DETECTORS["retinanet"], "INPUT__MIN_SIZE_TEST": 64},
    "fcos": {**NARROW, **DETECTORS["fcos"], "INPUT__MIN_SIZE_TEST": 64},
}
# Runs TorchScript files as somebody without Detectron2 would, each on the images beside them.
STRANGER = """
import sys, torch, torchvision
for path in sys.argv[1:]:
    extra = {"detector.json": ""}
    detector = torch.jit.load(path, _extra_files=extra)
    found = [detector(x) for x in torch.load("images.pt")]
    torch.save({"found": found, "facts": extra["detector.json"].decode()}, path + ".found")
assert not {"detectron2", "soft_teacher"} & set(sys.modules)
"""


def train(folder: Path, keys: dict) -> tuple[nn.Module, object, Path]:
    """A model whose detections differ in score, its config and a checkpoint of it."""
    cfg = tiny_config(**keys)
    torch.manual_seed(1)
    model = build_model(cfg).eval()
    if hasattr(model, "head"):
        excited(model)
    checkpoint = folder / "model_final.pth"
    torch.save({"model": {}, "teacher": model.state_dict()}, checkpoint)
    return model, cfg, checkpoint


def photos(*sizes):
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(256, (3, *size), generator=generator).float() for size in sizes]


def own_detections(model, image):
    """What the model finds, in the frame of the image; masks as probabilities of 28 x 28."""
    with torch.no_grad():
        if hasattr(model, "roi_heads"):
            return model.inference([{"image": image}], do_postprocess=False)[0].get_fields()
        return model([{"image": image}])[0]["instances"].get_fields()


def assert_same_detections(found: dict, expected: dict, boxes: float, scores: float):
    assert found.keys() == expected.keys() and len(expected["scores"]) > 5
    torch.testing.assert_close(found["scores"], expected["scores"], rtol=0, atol=scores)
    torch.testing.assert_close(
        found["pred_boxes"], expected["pred_boxes"].tensor, rtol=0, atol=boxes
    )
    assert torch.equal(found["pred_classes"], expected["pred_classes"])
    if "pred_masks" in expected:
        torch.testing.assert_close(found["pred_masks"], expected["pred_masks"], rtol=0, atol=scores)


@pytest.mark.slow
def test_a_fresh_process_runs_torchscript_without_detectron2_and_finds_the_same(tmp_path):
    images, models = photos((64, 96), (101, 75)), {}
    torch.save(images, tmp_path / "images.pt")
    for family, keys in FAMILIES.items():
        models[family], cfg, checkpoint = train(tmp_path, keys)
        tried = example_images(cfg, None)
        agreement = export_traced(
            checkpoint, "teacher", cfg, tmp_path / family, "torchscript", tried
        )
        assert agreement.is_close and agreement.num_images == 2, family
    subprocess.run([sys.executable, "-c", STRANGER, *models], cwd=tmp_path, check=True, timeout=300)
    for family, model in models.items():
        results = torch.load(tmp_path / f"{family}.found", weights_only=True)
        facts = json.loads(results["facts"])
        assert facts["image_format"] == "BGR" and facts["min_size"] == 64, family
        for image, found in zip(images, results["found"], strict=True):
            found = dict(zip(facts["outputs"], found, strict=True))
            assert found.pop("image_size").tolist() == list(image.shape[1:]), family
            assert_same_detections(found, own_detections(model, image), boxes=1e-3, scores=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_onnxruntime_finds_the_same(tmp_path, family):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    model, cfg, checkpoint = train(tmp_path, FAMILIES[family])
    file = tmp_path / "detector.onnx"
    assert export_traced(checkpoint, "teacher", cfg, file, "onnx", photos((64, 80), (96, 75)))
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    facts = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    assert [x.name for x in session.get_outputs()] == facts["outputs"]
    for image in photos((64, 96), (101, 75)):
        outputs = session.run(None, {"image": image.numpy()})
        found = {k: torch.from_numpy(v) for k, v in zip(facts["outputs"], outputs, strict=True)}
        assert found.pop("image_size").tolist() == list(image.shape[1:])
        assert_same_detections(found, own_detections(model, image), boxes=1e-2, scores=1e-4)


class Frozen(nn.Module):
    """A detector whose trace holds the size of the example: it returns a box around the image."""

    device = torch.device("cpu")

    def __init__(self, cfg):
        super().__init__()

    def forward(self, views):
        height, width = (int(x) for x in views[0]["image"].shape[1:])
        found = Instances((height, width))
        found.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, float(width), float(height)]]))
        found.pred_classes = torch.zeros(1, dtype=torch.int64)
        found.scores = views[0]["image"].mean()[None] / 256 + 0.1
        return [{"instances": found}]


class Untraceable(Frozen):
    """A detector that gives something else than tensors."""

    def forward(self, views):
        (result,) = super().forward(views)
        return [{"instances": result["instances"], "note": "no tensor"}]


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (Frozen, "As torchscript this model finds other objects than it does itself"),
        (
            Untraceable,
            "cannot be exported as torchscript for images of any size: tried was Detectron2",
        ),
    ],
)
def test_a_model_that_tracing_gets_wrong_is_refused_and_no_file_is_written(
    tmp_path, monkeypatch, detector, message
):
    monkeypatch.setattr(traced_export, "build_model", detector)
    checkpoint = tmp_path / "model_final.pth"
    torch.save({"model": {}, "teacher": {}}, checkpoint)
    file, images = tmp_path / "x.ts", photos((64, 80), (80, 64))
    with pytest.raises(ValueError, match=message):
        export_traced(checkpoint, "teacher", tiny_config(), file, "torchscript", images)
    assert not file.exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
def test_detectron2s_swin_is_refused_as_it_cannot_be_traced_for_every_size(tmp_path, kind):
    if kind == "onnx":
        pytest.importorskip("onnx")
    small = {"EMBED_DIM": 8, "DEPTHS": (2, 2, 2, 2), "NUM_HEADS": (1, 2, 2, 4), "WINDOW_SIZE": 4}
    keys = {f"MODEL__SWIN__{k}": v for k, v in small.items()}
    keys = {**RCNN, **keys, "MODEL__BACKBONE__NAME": "build_swin_fpn_backbone"}
    _, cfg, checkpoint = train(tmp_path, keys)
    file, images = tmp_path / "x", photos((64, 80), (96, 75))
    if kind == "torchscript":
        # Of the size of the example it can be.
        export_traced(checkpoint, "teacher", cfg, tmp_path / "one_size.ts", kind, images[:1])
    with pytest.raises(ValueError, match=f"build_swin_fpn_backbone cannot be exported as {kind}"):
        export_traced(checkpoint, "teacher", cfg, file, kind, images)
    assert not file.exists()


def test_onnx_without_its_packages_is_refused_with_the_command_that_gets_them(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    _, cfg, checkpoint = train(tmp_path, RCNN)
    message = "onnx and onnxruntime: pip install onnx onnxruntime"
    with pytest.raises(ValueError, match=message):
        export_traced(checkpoint, "teacher", cfg, tmp_path / "x.onnx", "onnx", photos((64, 80)))


def test_a_checkpoint_of_another_model_than_the_configs_is_refused(tmp_path):
    _, cfg, checkpoint = train(tmp_path, RCNN)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 7
    with pytest.raises(ValueError, match="not of the model that the config describes, give its"):
        export_traced(checkpoint, "teacher", cfg, tmp_path / "x.ts", "torchscript", photos((9, 9)))


def test_examples_are_two_images_of_different_shape_from_noise_or_a_photo(tmp_path):
    cfg = tiny_config(INPUT__MIN_SIZE_TEST=96, INPUT__FORMAT="RGB")
    pixels = np.zeros((50, 40, 3), np.uint8) + np.array([10, 120, 250], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    noise, photo = example_images(cfg, None), example_images(cfg, tmp_path / "photo.png")
    for images in (noise, photo):
        assert [tuple(x.shape) for x in images] == [(3, 96, 128), (3, 87, 61)]
        assert all(x.dtype == torch.float32 for x in images)
    assert all(x.std() > 50 and x.min() >= 0 and x.max() <= 255 for x in noise)
    for image in photo:
        assert torch.equal(image, torch.tensor([10.0, 120, 250])[:, None, None].expand_as(image))


def test_the_command_writes_and_checks_torchscript(tmp_path, capsys):
    _, cfg, checkpoint = train(tmp_path, RCNN)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(
        tmp_path / "photo.png"
    )
    tool = Path(__file__).parents[2] / "tools" / "export_model.py"
    spec = importlib.util.spec_from_file_location("export_model", tool)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    options = ["--model", "teacher", "--format", "torchscript", "--photo"]
    module.main([str(checkpoint), *options, str(tmp_path / "photo.png")])
    file = tmp_path / "model_final_teacher.ts"
    printed = capsys.readouterr().out
    assert f"Written: {file}" in printed and "detections in 2 images differ by at most" in printed
    assert len(torch.jit.load(file)(photos((64, 80))[0])) == 4
    with pytest.raises(SystemExit):
        module.main([str(checkpoint), *options[:4], "--output", str(tmp_path / "x.pth")])
    assert "with --format torchscript it ends in .ts" in capsys.readouterr().err
