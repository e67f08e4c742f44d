"""The config with which a converted model finds what mmdetection finds with it."""

from dataclasses import dataclass

from detectron2.config import CfgNode, get_cfg

from soft_teacher.config import add_soft_teacher_config
from soft_teacher.engine.mmdet_checkpoint.shapes import Architecture, ResNetShape, SwinShape

STYLES = ("caffe", "pytorch")

# mmdetection's BGR means of caffe's networks and the RGB statistics of torchvision's.
_CAFFE = {"FORMAT": "BGR", "MEAN": [103.53, 116.28, 123.675], "STD": [1.0, 1.0, 1.0]}
_TORCHVISION = {
    "FORMAT": "RGB",
    "MEAN": [123.675, 116.28, 103.53],
    "STD": [58.395, 57.12, 57.375],
}
_LEVELS = ["res2", "res3", "res4", "res5"]
# mmdetection's target_stds of the three stages; Detectron2 divides where mmdetection multiplies.
_STAGE_STDS = [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)]
# What a model is described by; the sections of the backbone come with it. Written in full, so that
# it holds on top of any other config.
_DESCRIBED = (
    "META_ARCHITECTURE",
    "WEIGHTS",
    "MASK_ON",
    "PIXEL_MEAN",
    "PIXEL_STD",
    "BACKBONE",
    "FPN",
    "ANCHOR_GENERATOR",
    "PROPOSAL_GENERATOR",
    "RPN",
    "ROI_HEADS",
    "ROI_BOX_HEAD",
    "ROI_MASK_HEAD",
)
_OF_CASCADE = ("ROI_BOX_CASCADE_HEAD", "ROI_HTC")
# Of the score in mmdetection's test_cfg.
_HTC_THRESHOLD, _THRESHOLD = 0.001, 0.05


@dataclass(frozen=True)
class Settings:
    """What a state dict does not tell.

    Attributes:
        style: of a ResNet with bottlenecks and its images, "caffe" (stride in the 1x1 convolution;
            BGR, no scaling) or "pytorch" (stride in the 3x3 one; RGB, ImageNet statistics). Swin
            Transformers have images as "pytorch".
        score_threshold: of detections; None for mmdetection's, 0.001 of HTC and 0.05 of others.
    """

    style: str
    score_threshold: float | None = None


def config_of(architecture: Architecture, settings: Settings) -> CfgNode:
    """The config of the model, of its images and of its inference, on top of all defaults.

    Numbers that the file does not tell are those of mmdetection's configs in `configs/_base_`
    there, of the same kind of detector; so are those of the training losses.

    Raises:
        ValueError: the style is unknown.
    """
    if settings.style not in STYLES:
        raise ValueError(f"The style is {settings.style!r}; choose one of {', '.join(STYLES)}.")
    cfg = get_cfg()
    add_soft_teacher_config(cfg)
    cfg.MODEL.META_ARCHITECTURE = "SoftTeacherRCNN"
    cfg.MODEL.WEIGHTS = ""
    _set_images(cfg, architecture, settings.style)
    if isinstance(architecture.backbone, ResNetShape):
        _set_resnet(cfg, architecture.backbone, settings.style)
    else:
        _set_swin(cfg, architecture.backbone)
    cfg.MODEL.FPN.IN_FEATURES = _LEVELS
    cfg.MODEL.FPN.OUT_CHANNELS = architecture.fpn_channels
    cfg.MODEL.FPN.NORM = architecture.fpn_norm
    _set_proposals(cfg, architecture)
    _set_box_head(cfg, architecture)
    if architecture.mask is not None:
        _set_mask_head(cfg, architecture)
    if architecture.is_cascade:
        _set_cascade(cfg, architecture)
    default = _HTC_THRESHOLD if architecture.is_htc else _THRESHOLD
    threshold = settings.score_threshold
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = default if threshold is None else threshold
    return cfg


def described_part(cfg: CfgNode, architecture: Architecture) -> CfgNode:
    """The keys that describe model, images and inference, without those of a training.

    Args:
        cfg: as `config_of` made it, perhaps with weights and sets.
    """
    is_resnet = isinstance(architecture.backbone, ResNetShape)
    sections = (*_DESCRIBED, "RESNETS" if is_resnet else "SWIN")
    if architecture.is_cascade:
        sections += _OF_CASCADE
    images = ("FORMAT", "MIN_SIZE_TEST", "MAX_SIZE_TEST")
    part = {
        "VERSION": cfg.VERSION,
        "MODEL": {key: cfg.MODEL[key] for key in sections},
        "INPUT": {key: cfg.INPUT[key] for key in images},
        "TEST": {"DETECTIONS_PER_IMAGE": cfg.TEST.DETECTIONS_PER_IMAGE},
    }
    if cfg.DATASETS.TEST:
        part["DATASETS"] = {"TEST": cfg.DATASETS.TEST}
    return CfgNode(part)


def _set_images(cfg: CfgNode, architecture: Architecture, style: str) -> None:
    is_caffe = isinstance(architecture.backbone, ResNetShape) and style == "caffe"
    images = _CAFFE if is_caffe else _TORCHVISION
    cfg.INPUT.FORMAT = images["FORMAT"]
    cfg.MODEL.PIXEL_MEAN = images["MEAN"]
    cfg.MODEL.PIXEL_STD = images["STD"]
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 800, 1333


def _set_resnet(cfg: CfgNode, shape: ResNetShape, style: str) -> None:
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.DEPTH = shape.depth
    cfg.MODEL.RESNETS.OUT_FEATURES = _LEVELS
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = shape.stem_channels
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = shape.res2_channels
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = style == "caffe"
    if shape.depth >= 50:
        cfg.MODEL.RESNETS.NUM_GROUPS = shape.num_groups
        cfg.MODEL.RESNETS.WIDTH_PER_GROUP = shape.width_per_group


def _set_swin(cfg: CfgNode, shape: SwinShape) -> None:
    cfg.MODEL.BACKBONE.NAME = "build_swin_fpn_backbone"
    cfg.MODEL.SWIN.EMBED_DIM = shape.embed_dim
    cfg.MODEL.SWIN.DEPTHS = shape.depths
    cfg.MODEL.SWIN.NUM_HEADS = shape.num_heads
    cfg.MODEL.SWIN.WINDOW_SIZE = shape.window_size


def _set_proposals(cfg: CfgNode, architecture: Architecture) -> None:
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0, 2.0]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.RPN.CONV_DIMS = list(architecture.rpn_dims)
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = 2000
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 2000 if architecture.is_cascade else 1000
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 1000
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 1000
    cfg.MODEL.RPN.SMOOTH_L1_BETA = 1 / 9 if architecture.is_cascade else 0.0


def _set_box_head(cfg: CfgNode, architecture: Architecture) -> None:
    shape = architecture.box
    cfg.MODEL.ROI_HEADS.NAME = "SoftTeacherROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = architecture.num_classes
    head = cfg.MODEL.ROI_BOX_HEAD
    head.NAME = "FastRCNNConvFCHead"
    head.NUM_CONV, head.CONV_DIM, head.NORM = shape.num_conv, shape.conv_dim, shape.norm
    head.NUM_FC, head.FC_DIM = shape.num_fc, shape.fc_dim
    head.POOLER_RESOLUTION = shape.pooler_resolution
    head.POOLER_SAMPLING_RATIO = 0
    head.BBOX_REG_WEIGHTS = _weights(_STAGE_STDS[0])
    head.CLS_AGNOSTIC_BBOX_REG = shape.class_agnostic


def _set_mask_head(cfg: CfgNode, architecture: Architecture) -> None:
    shape = architecture.mask
    cfg.MODEL.MASK_ON = True
    head = cfg.MODEL.ROI_MASK_HEAD
    head.NAME = "MaskRCNNConvUpsampleHead"
    head.NUM_CONV, head.CONV_DIM, head.NORM = shape.num_conv, shape.conv_dim, shape.norm
    head.POOLER_RESOLUTION = 14
    head.POOLER_SAMPLING_RATIO = 0
    head.CLS_AGNOSTIC_MASK = shape.class_agnostic


def _set_cascade(cfg: CfgNode, architecture: Architecture) -> None:
    cfg.MODEL.ROI_HEADS.NAME = "SoftTeacherHTCROIHeads"
    cfg.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA = 1.0
    cascade = cfg.MODEL.ROI_BOX_CASCADE_HEAD
    cascade.BBOX_REG_WEIGHTS = tuple(_weights(stds) for stds in _STAGE_STDS)
    cascade.IOUS = (0.5, 0.6, 0.7)
    htc = cfg.MODEL.ROI_HTC
    htc.INTERLEAVED = architecture.is_htc
    htc.MASK_INFO_FLOW = architecture.mask is not None and architecture.mask.has_flow
    htc.SCORE_AVERAGE = "logits"
    htc.STAGE_LOSS_WEIGHTS = (1.0, 0.5, 0.25)
    htc.SEMANTIC_ON = architecture.num_semantic_classes is not None
    if htc.SEMANTIC_ON:
        htc.SEMANTIC_NUM_CLASSES = architecture.num_semantic_classes


def _weights(stds: tuple[float, ...]) -> tuple[float, ...]:
    """Detectron2's box weights of mmdetection's standard deviations."""
    return tuple(1 / x for x in stds)


def numeric_differences(architecture: Architecture) -> list[str]:
    """Where a converted model may find other numbers than mmdetection, one sentence each."""
    notes = [
        "Images are resized by Pillow, in mmdetection by OpenCV: pixels, and so AP, differ a "
        "little. On the same resized image, boxes, scores and masks agree up to rounding.",
        "Inference takes 1,000 proposals a level before NMS and 1,000 an image after it, as "
        "mmdetection does. The official Soft Teacher's teacher labels images in training from its "
        "training settings (2,000 and 1,000), here from those of inference.",
        "Boxes of equal scores may come in another order out of NMS.",
        "A side predicted to be less than 1/62.5 of its proposal's is enlarged to that by "
        "mmdetection, and not by Detectron2.",
    ]
    if architecture.is_cascade:
        notes.append(
            "Class scores of the three stages are averaged as logits, as in mmdetection "
            "(MODEL.ROI_HTC.SCORE_AVERAGE); Detectron2's own cascade averages probabilities."
        )
    if architecture.is_cascade and architecture.mask is not None:
        notes.append(
            "Masks are the mean of the three heads' probabilities, as in mmdetection but for HTC "
            "in 3.x up to 3.3, which takes the last head's alone, by a slip (its issue 10210)."
        )
    if isinstance(architecture.backbone, ResNetShape):
        notes.append(
            "In training, batch norms of the backbone are frozen altogether; mmdetection trains "
            "the weights and biases of those of 'pytorch' style."
        )
    return notes
