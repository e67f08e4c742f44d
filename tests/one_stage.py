"""Tiny RetinaNet and FCOS, and pseudo labels for them."""

import torch

from soft_teacher.engine.ema import build_teacher
from soft_teacher.modeling.dense_guidance import DenseGuidance
from tiny import NUM_CLASSES, detections, plain_view, random_boxes, tiny_config, tiny_model

COMMON = {
    "MODEL__BACKBONE__NAME": "build_resnet_p6p7_fpn_backbone",
    "MODEL__RESNETS__OUT_FEATURES": ["res3", "res4", "res5"],
    "MODEL__FPN__IN_FEATURES": ["res3", "res4", "res5"],
    # Two channels in each group of the norm, which refuses a single value: P7 is one location.
    "MODEL__FPN__OUT_CHANNELS": 64,
}
RETINANET = {
    **COMMON,
    "MODEL__META_ARCHITECTURE": "SoftTeacherRetinaNet",
    "MODEL__RETINANET__NUM_CLASSES": NUM_CLASSES,
    "MODEL__RETINANET__NUM_CONVS": 1,
    "MODEL__RETINANET__NORM": "GN",
    "MODEL__ANCHOR_GENERATOR__SIZES": [[x, 1.4 * x] for x in (16, 32, 64, 128, 256)],
}
FCOS = {
    **COMMON,
    "MODEL__META_ARCHITECTURE": "SoftTeacherFCOS",
    "MODEL__FCOS__NUM_CLASSES": NUM_CLASSES,
    "MODEL__FCOS__NUM_CONVS": 1,
}
DETECTORS = {"retinanet": RETINANET, "fcos": FCOS}
SIZE = (64, 80)
FLIP = [[-1.0, 0, 80], [0, 1, 0], [0, 0, 1]]


def config(name: str, **overrides):
    return tiny_config(**{**DETECTORS[name], **overrides})


def student_of(name: str, seed: int = 0, **overrides) -> torch.nn.Module:
    return tiny_model(seed, **{**DETECTORS[name], **overrides})


def excited(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The model with output layers of random weights: scores and boxes that differ by place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in (model.head.cls_score, model.head.bbox_pred):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * 0.1)
        model.head.cls_score.bias.fill_(-1.0)
    return model


def sure(guidance: DenseGuidance, num_boxes: int = 3, score: float = 0.99) -> DenseGuidance:
    """The guidance with other pseudo boxes, all of them reliable."""
    labels = [
        detections(random_boxes(i, num_boxes, SIZE), [score] * num_boxes)
        for i in range(len(guidance))
    ]
    other = DenseGuidance(
        labels, guidance.matrices, guidance.predictions, guidance.rules, guidance._spread_rules
    )
    other._variance = [torch.zeros(num_boxes)] * len(guidance)
    return other


def annotated(student: torch.nn.Module, weak: list[dict] | None = None) -> DenseGuidance:
    return build_teacher(student).annotate(weak or [plain_view(1), plain_view(2)])
