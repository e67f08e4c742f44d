"""The keys of MODEL that Soft Teacher adds to Detectron2's; `config_keys` says what they cite."""

from detectron2.config import CfgNode as CN


def add_model_keys(cfg: CN) -> None:
    """Add the keys of MODEL to a config, in place."""
    _add_execution_keys(cfg)
    _add_timm_keys(cfg)
    _add_swin_keys(cfg)
    _add_htc_keys(cfg)
    _add_soft_nms_keys(cfg)
    _add_fcos_keys(cfg)


def _add_execution_keys(cfg: CN) -> None:
    # Lay the models' weights and feature maps out with the channels last: faster where
    # convolutions are (the same up to rounding).
    cfg.MODEL.CHANNELS_LAST = False
    # Scale the weights of Detectron2's convolutions by the frozen norm behind them instead of the
    # feature maps (the same up to rounding), in the student and the teacher.
    cfg.MODEL.FOLD_FROZEN_NORMS = False
    # Backend of torch.compile, such as "inductor", for backbones, RPN, box and dense heads of the
    # student and the teacher in training, with images of any size (the same up to rounding);
    # empty: not compiled. The first steps take minutes; inductor needs a C++ compiler on the CPU
    # and Triton on GPUs.
    cfg.MODEL.COMPILE = ""
    # Compute activations of Detectron2's ResNets again in backward, block by block, instead of
    # keeping them: less memory, a third more time in the backbone, the same results.
    cfg.MODEL.BACKBONE.CHECKPOINT_ACTIVATIONS = False


def _add_timm_keys(cfg: CN) -> None:
    # Backbone "build_timm_fpn_backbone": any timm model that offers `features_only`.
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = "resnet50"
    # Indices of timm's feature levels that enter the FPN, lowest stride first.
    cfg.MODEL.TIMM.OUT_INDICES = (1, 2, 3, 4)
    # File of backbone weights; empty for random ones. Nothing is downloaded.
    cfg.MODEL.TIMM.WEIGHTS = ""
    # Freeze the running statistics and affine parameters of batch norms in the backbone.
    cfg.MODEL.TIMM.FREEZE_NORM = True
    # Number of leading feature levels (with the stem) that are not trained.
    cfg.MODEL.TIMM.FREEZE_AT = 0
    # Rate of stochastic depth in the last block, growing linearly from 0 in the first; 0 for none,
    # whatever timm's default for the network is.
    cfg.MODEL.TIMM.DROP_PATH_RATE = 0.0
    # Layer norm on each level: "LN", "none", or "auto", where the network has layer norms and no
    # batch norms (Swin, ConvNeXt), as in the detection code of these networks' authors.
    cfg.MODEL.TIMM.OUT_NORM = "auto"


def _add_swin_keys(cfg: CN) -> None:
    # Backbones "build_swin_fpn_backbone" and "build_swin_p6p7_fpn_backbone": Detectron2's own Swin
    # Transformer. Defaults are those of Swin-T in its authors' detection code
    # (github.com/SwinTransformer/Swin-Transformer-Object-Detection); docs/backbones.md has S, B, L.
    cfg.MODEL.SWIN = swin = CN()
    # Channels of the first stage; each other stage has twice as many as the one before.
    swin.EMBED_DIM = 96
    # Blocks of each of the four stages.
    swin.DEPTHS = (2, 2, 6, 2)
    # Attention heads of each stage.
    swin.NUM_HEADS = (3, 6, 12, 24)
    # Side of the attention window, in tokens. Weights for another one are resized.
    swin.WINDOW_SIZE = 7
    # Rate of stochastic depth in the last block, growing linearly from 0 (authors: 0.2 for T and S,
    # 0.3 for B). It is off in the teacher and in frozen stages.
    swin.DROP_PATH_RATE = 0.2
    # Absolute position embedding, and the side in pixels of the images that it is for. None of the
    # published networks has one.
    swin.APE = False
    swin.PRETRAIN_IMG_SIZE = 224
    # Levels to put out, by stride 4 to 32: all of these or the last ones.
    swin.OUT_FEATURES = ("res2", "res3", "res4", "res5")
    # What is not trained: -1 nothing (authors), 0 the patch embedding, 1 also the absolute position
    # embedding, k > 1 also the first k - 1 stages. MODEL.BACKBONE.FREEZE_AT means nothing here.
    swin.FROZEN_STAGES = -1
    # Recompute activations in the backward pass, which takes less memory and more time.
    swin.USE_CHECKPOINT = False
    # HTC++'s global self-attention layer behind the last stage (docs/htc_plus_plus.md), with as
    # many heads as that stage has, and its rate of stochastic depth (ViT-Adapter's HTC++: 0.3).
    swin.GLOBAL_ATTENTION = CN()
    swin.GLOBAL_ATTENTION.ENABLED = False
    swin.GLOBAL_ATTENTION.DROP_PATH_RATE = 0.3
    # File of backbone weights: an official ImageNet checkpoint, timm's, or a Detectron2 detector
    # with this backbone; empty for random ones. Nothing is downloaded.
    swin.WEIGHTS = ""


def _add_htc_keys(cfg: CN) -> None:
    # MODEL.ROI_HEADS.NAME SoftTeacherHTCROIHeads, docs/htc.md. Defaults are those of mmdetection's
    # HTC; stages, IoU thresholds and box weights are in MODEL.ROI_BOX_CASCADE_HEAD.
    cfg.MODEL.ROI_HTC = htc = CN()
    # True: the masks of a stage learn from boxes as the stage refined them, sampled anew (HTC).
    # False: from the RoIs of its box head (Cascade Mask R-CNN).
    htc.INTERLEAVED = True
    # True: mask heads after the first take in the features of those before them.
    htc.MASK_INFO_FLOW = True
    # What of the stages is averaged to one score in inference: "logits" (mmdetection) or
    # "probabilities" (Detectron2). A threshold does not mean the same under both.
    htc.SCORE_AVERAGE = "logits"
    # Of each stage, on all its losses, labeled or not (paper and mmdetection).
    htc.STAGE_LOSS_WEIGHTS = (1.0, 0.5, 0.25)
    # The semantic branch, which learns from maps of labels of the labeled images.
    htc.SEMANTIC_ON = False
    # Labels are 0 to this minus 1, and 255 for pixels without one (mmdetection: 183, COCO-stuff).
    htc.SEMANTIC_NUM_CLASSES = 183
    # Multiplies the branch's loss (mmdetection: 0.2; the paper's default: 1).
    htc.SEMANTIC_LOSS_WEIGHT = 0.2


def _add_soft_nms_keys(cfg: CN) -> None:
    # Soft-NMS (Bodla et al., ICCV 2017) in place of NMS in evaluation and prediction: overlapping
    # detections of a class score less instead of being dropped (docs/htc_plus_plus.md).
    cfg.MODEL.ROI_HEADS.SOFT_NMS = soft_nms = CN()
    soft_nms.ENABLED = False
    # "linear": scores are multiplied by 1 - IoU where the IoU with a better detection is at least
    # ROI_HEADS.NMS_THRESH_TEST. "gaussian": by exp(-IoU^2 / SIGMA), whatever the IoU.
    soft_nms.METHOD = "linear"
    # mmcv's default, and the paper's.
    soft_nms.SIGMA = 0.5
    # Lowest score that is kept, after it was lowered (mmcv and the configs of HTC++: 0.001).
    soft_nms.MIN_SCORE = 0.001
    # True: the teacher's pseudo boxes are chosen by it too. Their scores are lower then, and
    # SOFT_TEACHER.PSEUDO_LABELS.CLS_SCORE means something else. Our choice is not to.
    soft_nms.PSEUDO_LABELS = False


def _add_fcos_keys(cfg: CN) -> None:
    # Detectron2 has an FCOS, but no config keys for it. Defaults are those of its class and of its
    # COCO recipe (configs/common/models/fcos.py there), unless noted.
    cfg.MODEL.FCOS = fcos = CN()
    fcos.NUM_CLASSES = 80
    fcos.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Convolutions of each of the two towers, as wide as the feature maps, and their norm.
    fcos.NUM_CONVS = 4
    fcos.NORM = "GN"
    # Foreground probability that the bias of the class scores starts with.
    fcos.PRIOR_PROB = 0.01
    # Distance to each of the four sides, in strides, that the bias of the boxes starts with.
    # Detectron2 has 0, and distances below 0 count as 0: from boxes of no size, on which the GIoU
    # loss has hardly a gradient, a short training does not get away. FCOS's authors start at 1.
    fcos.BOX_BIAS = 0.0
    # Half the side, in strides, of the square around an object's center whose points are positive.
    fcos.CENTER_SAMPLING_RADIUS = 1.5
    fcos.FOCAL_LOSS_ALPHA = 0.25
    fcos.FOCAL_LOSS_GAMMA = 2.0
    # Of sqrt(class probability * centerness). Detectron2 has 0.2, for speed; the teacher is asked
    # for the spread of weaker predictions too, and AP is measured at 0.05 everywhere else here.
    fcos.SCORE_THRESH_TEST = 0.05
    # Predictions of each level that enter NMS.
    fcos.TOPK_CANDIDATES_TEST = 1000
    fcos.NMS_THRESH_TEST = 0.6
