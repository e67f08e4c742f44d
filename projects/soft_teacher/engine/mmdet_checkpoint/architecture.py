"""Which network an mmdetection state dict is of, by its names and sizes.

What a state dict does not tell (strides within blocks, anchors, poolers, thresholds) is in
`config_of`.
"""

import math
import re

from soft_teacher.engine.mmdet_checkpoint.reading import State
from soft_teacher.engine.mmdet_checkpoint.shapes import (
    Architecture,
    BoxHeadShape,
    MaskHeadShape,
    ResNetShape,
    SwinShape,
)

# Blocks of each stage, and whether they are bottlenecks -> depth.
_DEPTHS = {
    ((2, 2, 2, 2), False): 18,
    ((3, 4, 6, 3), False): 34,
    ((3, 4, 6, 3), True): 50,
    ((3, 4, 23, 3), True): 101,
    ((3, 8, 36, 3), True): 152,
}
_NUM_LEVELS = 4
_NUM_CASCADE_STAGES = 3
_TABLE = "attn.w_msa.relative_position_bias_table"
_AUTHORS_TABLE = "attn.relative_position_bias_table"


def detect_architecture(state: State) -> Architecture:
    """Read the architecture off a state dict of one model, by mmdetection's names.

    Raises:
        ValueError: it is of a detector that this project does not have, or of none.
    """
    _refuse_other_detectors(state)
    num_stages = _count(state, r"roi_head\.bbox_head\.(\d+)\.fc_cls\.weight") or 1
    if num_stages not in (1, _NUM_CASCADE_STAGES):
        raise ValueError(
            f"The file has a cascade of {num_stages} stages; this project has those of 3, whose "
            "IoU thresholds and box weights are known."
        )
    is_cascade = num_stages > 1
    head = "roi_head.bbox_head.0." if is_cascade else "roi_head.bbox_head."
    num_classes = len(state[f"{head}fc_cls.weight"]) - 1
    box = _box_head(state, head, num_classes)
    if is_cascade and not box.class_agnostic:
        raise ValueError(
            "The file's cascade regresses boxes by class (fc_reg has 4 rows for each class), as "
            "Swin's authors' detectors do; this project's cascades hand boxes on without a class."
        )
    return Architecture(
        backbone=_backbone(state),
        fpn_channels=len(state["neck.fpn_convs.0.conv.weight"]),
        fpn_norm=_norm(state, "neck.fpn_convs.0."),
        rpn_dims=_rpn_dims(state),
        num_classes=num_classes,
        num_stages=num_stages,
        box=box,
        mask=_mask_head(state, num_stages, num_classes),
        num_semantic_classes=_num_semantic_classes(state),
    )


def _refuse_other_detectors(state: State) -> None:
    if any(x.startswith(("bbox_head.", "mask_head.")) for x in state):
        raise ValueError(
            "The file's box head is not below 'roi_head.': it is of a one-stage detector or of "
            "mmdetection 1.x. Two-stage and cascaded detectors of 2.x and 3.x can be converted."
        )
    needed = ("rpn_head.rpn_cls.weight", "rpn_head.rpn_reg.weight", "neck.fpn_convs.0.conv.weight")
    missing = [x for x in needed if x not in state]
    if not _has(state, r"roi_head\.bbox_head\.(0\.)?fc_cls\.weight"):
        missing.append("roi_head.bbox_head.fc_cls.weight")
    if missing:
        raise ValueError(
            f"The file is not of a Faster, Mask or Cascade R-CNN or HTC with a feature pyramid: it "
            f"has no {', '.join(missing)}."
        )
    num_levels = _count(state, r"neck\.fpn_convs\.(\d+)\.conv\.weight")
    if num_levels != _NUM_LEVELS:
        raise ValueError(
            f"The file's feature pyramid has {num_levels} levels of convolutions; this project's "
            f"two-stage detectors have {_NUM_LEVELS}, and P6 by pooling."
        )


def _backbone(state: State) -> ResNetShape | SwinShape:
    if "backbone.conv1.weight" in state:
        return _resnet(state)
    if _has(state, r"backbone\.patch_embed\.proj(ection)?\.weight"):
        return _swin(state)
    found = sorted({".".join(x.split(".")[:2]) for x in state if x.startswith("backbone.")})
    raise ValueError(
        f"The file's backbone is neither a ResNet with mmdetection's usual stem nor a Swin "
        f"Transformer; it has {', '.join(found) or 'no weights'}."
    )


def _resnet(state: State) -> ResNetShape:
    blocks = tuple(
        _count(state, rf"backbone\.layer{i + 1}\.(\d+)\.conv1\.weight") for i in range(_NUM_LEVELS)
    )
    is_bottleneck = "backbone.layer1.0.conv3.weight" in state
    if (blocks, is_bottleneck) not in _DEPTHS:
        kind = "bottleneck" if is_bottleneck else "basic"
        raise ValueError(
            f"The file's ResNet has {blocks} {kind} blocks in its stages, which is none of the "
            "depths 18, 34, 50, 101 and 152."
        )
    middle = state["backbone.layer1.0.conv2.weight"]
    last = state[f"backbone.layer1.0.conv{3 if is_bottleneck else 2}.weight"]
    shape = ResNetShape(
        depth=_DEPTHS[blocks, is_bottleneck],
        stem_channels=len(state["backbone.conv1.weight"]),
        res2_channels=len(last),
        num_groups=len(middle) // middle.shape[1],
        width_per_group=middle.shape[1],
    )
    if not is_bottleneck and (shape.stem_channels, shape.res2_channels) != (64, 64):
        raise ValueError(
            f"The file's ResNet-{shape.depth} has {shape.res2_channels} channels in its first "
            "stage; Detectron2 has ResNet-18 and 34 with 64."
        )
    return shape


def _swin(state: State) -> SwinShape:
    if any("absolute_pos_embed" in x for x in state):
        raise ValueError(
            "The file's Swin Transformer has an absolute position embedding, which is not "
            "converted; no published detector has one."
        )
    is_mmdet = "backbone.patch_embed.projection.weight" in state
    stages, table = ("stages", _TABLE) if is_mmdet else ("layers", _AUTHORS_TABLE)
    first = f"backbone.patch_embed.{'projection' if is_mmdet else 'proj'}.weight"
    tables = [state.get(f"backbone.{stages}.{i}.blocks.0.{table}") for i in range(_NUM_LEVELS)]
    if any(x is None for x in tables):
        raise ValueError(f"The file's Swin Transformer lacks a {table} in one of its four stages.")
    return SwinShape(
        embed_dim=len(state[first]),
        depths=tuple(
            _count(state, rf"backbone\.{stages}\.{i}\.blocks\.(\d+)\.norm1\.weight")
            for i in range(_NUM_LEVELS)
        ),
        num_heads=tuple(x.shape[1] for x in tables),
        window_size=(math.isqrt(len(tables[0])) + 1) // 2,
    )


def _rpn_dims(state: State) -> tuple[int, ...]:
    if len(state["rpn_head.rpn_reg.weight"]) != 4 * len(state["rpn_head.rpn_cls.weight"]):
        raise ValueError(
            "The file's RPN does not have one score and four offsets for each anchor (rpn_cls and "
            "rpn_reg); an RPN with a softmax cannot be converted."
        )
    if len(state["rpn_head.rpn_cls.weight"]) != 3:
        raise ValueError(
            f"The file's RPN has {len(state['rpn_head.rpn_cls.weight'])} anchors at a place. Which "
            "ones they are is not in the file; mmdetection's usual three (ratios 0.5, 1 and 2) can "
            "be converted."
        )
    if "rpn_head.rpn_conv.weight" in state:
        return (len(state["rpn_head.rpn_conv.weight"]),)
    count = _count(state, r"rpn_head\.rpn_conv\.(\d+)\.conv\.weight")
    return tuple(len(state[f"rpn_head.rpn_conv.{i}.conv.weight"]) for i in range(count))


def _box_head(state: State, head: str, num_classes: int) -> BoxHeadShape:
    num_conv = _count(state, rf"{re.escape(head)}shared_convs\.(\d+)\.conv\.weight")
    num_fc = _count(state, rf"{re.escape(head)}shared_fcs\.(\d+)\.weight")
    if num_fc == 0:
        raise ValueError(f"The file's box head {head} has no shared_fcs; other heads are not read.")
    first = state[f"{head}shared_fcs.0.weight"]
    channels = len(state["neck.fpn_convs.0.conv.weight"])
    conv_dim = len(state[f"{head}shared_convs.0.conv.weight"]) if num_conv else channels
    resolution = math.isqrt(first.shape[1] // conv_dim)
    if conv_dim * resolution**2 != first.shape[1]:
        raise ValueError(
            f"{head}shared_fcs.0 takes {first.shape[1]} numbers, which are no square of RoI "
            f"features of {conv_dim} channels."
        )
    rows = len(state[f"{head}fc_reg.weight"]) if f"{head}fc_reg.weight" in state else 0
    return BoxHeadShape(
        num_conv=num_conv,
        conv_dim=conv_dim,
        norm=_norm(state, f"{head}shared_convs.0."),
        num_fc=num_fc,
        fc_dim=len(first),
        pooler_resolution=resolution,
        class_agnostic=rows == 4,
    )


def _mask_head(state: State, num_stages: int, num_classes: int) -> MaskHeadShape | None:
    if not any(x.startswith("roi_head.mask_head.") for x in state):
        return None
    head = "roi_head.mask_head.0." if num_stages > 1 else "roi_head.mask_head."
    if f"{head}conv_logits.weight" not in state:
        raise ValueError(f"The file's mask head has no {head}conv_logits.weight.")
    num_conv = _count(state, rf"{re.escape(head)}convs\.(\d+)\.conv\.weight")
    conv_dim = state[f"{head}conv_logits.weight"].shape[1]
    return MaskHeadShape(
        num_conv=num_conv,
        conv_dim=conv_dim,
        norm=_norm(state, f"{head}convs.0."),
        class_agnostic=len(state[f"{head}conv_logits.weight"]) == 1 < num_classes,
        has_flow=_has(state, r"roi_head\.mask_head\.\d+\.conv_res\..*"),
    )


def _num_semantic_classes(state: State) -> int | None:
    logits = state.get("roi_head.semantic_head.conv_logits.weight")
    return None if logits is None else len(logits)


def _norm(state: State, module: str) -> str:
    """The norm of one of mmcv's ConvModules, as Detectron2 calls it."""
    for key, name in (("bn", "BN"), ("gn", "GN")):
        if f"{module}{key}.weight" in state:
            return name
    return ""


def _has(state: State, pattern: str) -> bool:
    compiled = re.compile(pattern)
    return any(compiled.fullmatch(x) for x in state)


def _count(state: State, pattern: str) -> int:
    """One more than the largest index that stands for the group of a pattern; 0 if none does."""
    compiled = re.compile(pattern)
    matches = (compiled.fullmatch(x) for x in state)
    return max((int(m[1]) + 1 for m in matches if m), default=0)
