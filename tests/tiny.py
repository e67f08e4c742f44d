"""A small Faster R-CNN and made-up batches, for tests of model and training step."""

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from soft_teacher import add_soft_teacher_config

NUM_CLASSES = 3


def tiny_config(**overrides) -> CfgNode:
    """Config of a ResNet-18 FPN Faster R-CNN of a few channels; keys with "__" for "."."""
    cfg = get_cfg()
    add_soft_teacher_config(cfg)
    keys = {
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",
        "MODEL.META_ARCHITECTURE": "SoftTeacherRCNN",
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "MODEL.BACKBONE.FREEZE_AT": 1,
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
        "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.FPN.NORM": "GN",
        "MODEL.ANCHOR_GENERATOR.SIZES": [[16], [32], [64], [128], [256]],
        "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 100,
        "MODEL.RPN.POST_NMS_TOPK_TEST": 50,
        "MODEL.ROI_HEADS.NAME": "SoftTeacherROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
        "MODEL.ROI_HEADS.NUM_CLASSES": NUM_CLASSES,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 32,
        "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 7,
        "SEED": 1,
    }
    keys.update({k.replace("__", "."): v for k, v in overrides.items()})
    cfg.merge_from_list([x for pair in keys.items() for x in pair])
    return cfg


def tiny_model(seed: int = 0, **overrides) -> torch.nn.Module:
    """A student in training mode with weights drawn from a seed."""
    torch.manual_seed(seed)
    return build_model(tiny_config(**overrides)).train()


def labeled_view(seed: int, num_boxes: int = 3, size: tuple[int, int] = (64, 80)) -> dict:
    """A noise image with random boxes as ground truth."""
    view = plain_view(seed, size)
    view["instances"] = Instances(
        size, gt_boxes=Boxes(random_boxes(seed, num_boxes, size)), gt_classes=classes(num_boxes)
    )
    return view


def plain_view(seed: int, size: tuple[int, int] = (64, 80), matrix=None) -> dict:
    """A noise image that is a view of an original of the same size, or by the given matrix."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    return {
        "image": image,
        "matrix": np.eye(3) if matrix is None else np.array(matrix, dtype=np.float64),
        "height": size[0],
        "width": size[1],
        "file_name": f"{seed}.png",
        "image_id": seed,
    }


def random_boxes(seed: int, num_boxes: int, size: tuple[int, int]) -> torch.Tensor:
    """Boxes inside an image of the given (height, width), sides 10 to 40."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(num_boxes, 2, generator=generator)
    sides = torch.rand(num_boxes, 2, generator=generator) * 30 + 10
    corner = corner * (torch.tensor([size[1], size[0]]) - sides)
    return torch.cat([corner, corner + sides], dim=1)


def classes(num_boxes: int) -> torch.Tensor:
    return torch.arange(num_boxes) % NUM_CLASSES


def detections(boxes, scores, labels=None, size: tuple[int, int] = (64, 80)) -> Instances:
    """The teacher's detections on one image, as `Instances`."""
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Instances(
        size,
        pred_boxes=Boxes(boxes),
        scores=torch.as_tensor(scores, dtype=torch.float32),
        pred_classes=classes(len(boxes)) if labels is None else torch.as_tensor(labels),
    )
