"""A small HTC and what tests of it have in common."""

from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from PIL import Image
from torch import Tensor, nn

from htc_reference import Reference
from masks import MASK_HEAD
from tiny import NUM_CLASSES, tiny_config
from tiny_training import NUM_LABELED

NUM_STAGES = 3
STAGE_WEIGHTS = (1.0, 0.5, 0.25)
BOX_WEIGHTS = ((10.0, 10, 5, 5), (20.0, 20, 10, 10), (1 / 0.033, 1 / 0.033, 1 / 0.067, 1 / 0.067))
NUM_SEMANTIC = 6
HTC = {
    **MASK_HEAD,
    "MODEL.ROI_HEADS.NAME": "SoftTeacherHTCROIHeads",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": 1.0,
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": BOX_WEIGHTS,
    "MODEL.ROI_HTC.SEMANTIC_NUM_CLASSES": NUM_SEMANTIC,
}
SEMANTIC = {"MODEL.ROI_HTC.SEMANTIC_ON": True}
# mmdetection's Cascade Mask R-CNN.
CASCADE_MASK = {"MODEL.ROI_HTC.INTERLEAVED": False, "MODEL.ROI_HTC.MASK_INFO_FLOW": False}
# And its Cascade R-CNN.
CASCADE = {**CASCADE_MASK, "MODEL.MASK_ON": False}
MASK_SIDE = MASK_HEAD["MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION"]


def htc_config(**keys) -> CfgNode:
    return tiny_config(**{**HTC, **keys})


def htc_model(seed: int = 0, cfg: CfgNode | None = None, **keys) -> nn.Module:
    """A student in training mode whose heads differ, move boxes by pixels and draw masks."""
    torch.manual_seed(seed)
    model = build_model(cfg or htc_config(**keys)).train()
    for name, parameter in model.roi_heads.named_parameters():
        if name.endswith(("cls_score.weight", "bbox_pred.weight")):
            nn.init.normal_(parameter, std=0.3 if "cls_score" in name else 0.15)
        elif "predictor.weight" in name or "conv_logits.weight" in name:
            nn.init.normal_(parameter, std=0.5)
        elif name.endswith("bias"):
            nn.init.normal_(parameter, std=0.05)
    return model


def reference(model: nn.Module, features: dict[str, Tensor]) -> Reference:
    """The same heads, over given feature maps."""
    heads = model.roi_heads
    weights = [x.box2box_transform.weights for x in heads.box_predictor]
    flow = heads.htc_rules.mask_info_flow
    return Reference(dict(heads.named_parameters()), features, weights, NUM_CLASSES, flow)


def with_semantics(view: dict, seed: int = 0) -> dict:
    """The view with a map of blocks of random labels, some of them unknown."""
    generator = torch.Generator().manual_seed(seed)
    height, width = view["image"].shape[1:]
    blocks = torch.randint(0, NUM_SEMANTIC + 2, (height // 4, width // 4), generator=generator)
    blocks[blocks >= NUM_SEMANTIC] = 255
    labels = blocks.repeat_interleave(4, dim=0).repeat_interleave(4, dim=1)
    return {**view, "sem_seg": labels.to(torch.uint8)}


def write_semantic_maps(folder: Path) -> Path:
    """Maps of random labels for the labeled images of `tiny_training`; where they lie."""
    maps = folder / "maps"
    maps.mkdir()
    for i in range(NUM_LABELED):
        labels = np.random.default_rng(i).integers(0, NUM_SEMANTIC, (64, 64), dtype=np.uint8)
        Image.fromarray(labels).save(maps / f"labeled_{i}.png")
    return maps
