"""Detectron2's own Swin Transformer as a backbone for YAML configs."""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import FPN
from detectron2.modeling.backbone.swin import SwinTransformer, SwinTransformerBlock
from torch.utils.checkpoint import checkpoint
from torchvision.ops import StochasticDepth

from soft_teacher.modeling.backbones.global_attention import GlobalAttention
from soft_teacher.modeling.backbones.p6p7_fpn import build_p6p7_fpn
from soft_teacher.modeling.backbones.pyramid import LEVEL_NAMES, build_rcnn_fpn
from soft_teacher.modeling.backbones.swin_weights import load_swin_weights

# One stage for each level.
STAGE_NAMES = tuple(LEVEL_NAMES.values())


class CheckpointedBlock(SwinTransformerBlock):
    """A block that computes its activations again in the backward pass instead of keeping them.

    Detectron2's own checkpointing reads height and width off the block when it recomputes. These
    are of the batch that went through it last, which here is that of the unlabeled images while
    the gradient of the labeled ones is wanted too.
    """

    def forward(self, x: torch.Tensor, mask_matrix: torch.Tensor) -> torch.Tensor:
        """Map tokens N,H*W,C to N,H*W,C."""
        if not torch.is_grad_enabled():
            return super().forward(x, mask_matrix)
        return checkpoint(
            self._forward_at_size, x, mask_matrix, self.H, self.W, use_reentrant=False
        )

    def _forward_at_size(
        self, x: torch.Tensor, mask_matrix: torch.Tensor, height: int, width: int
    ) -> torch.Tensor:
        self.H, self.W = height, width
        return super().forward(x, mask_matrix)


class SwinBackbone(SwinTransformer):
    """Detectron2's Swin Transformer with levels named "res2" to "res5".

    Parameter names are Detectron2's. Each level is normalized.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int,
        drop_path_rate: float,
        ape: bool,
        pretrain_img_size: int,
        out_features: Sequence[str],
        frozen_stages: int,
        use_checkpoint: bool,
        global_attention: bool = False,
        global_drop_path_rate: float = 0.0,
    ) -> None:
        """
        Args:
            embed_dim: channels of the first stage; each other one has twice as many as the last.
            depths: blocks of each of the four stages.
            num_heads: attention heads of each stage.
            window_size: side of the attention window, in tokens.
            drop_path_rate: rate of stochastic depth in the last block, growing linearly from 0.
            ape: whether there is an absolute position embedding.
            pretrain_img_size: side of the images that this embedding is for, in pixels.
            out_features: levels to put out, "res2" to "res5", with the last one.
            frozen_stages: see MODEL.SWIN.FROZEN_STAGES.
            use_checkpoint: whether activations are recomputed, see :class:`CheckpointedBlock`.
            global_attention: whether the last level goes through a :class:`GlobalAttention`.
            global_drop_path_rate: rate of stochastic depth in it.
        """
        # Detectron2 reads rates off a tensor, which on a default device of "meta" has no values.
        with torch.device("cpu"):
            super().__init__(
                pretrain_img_size=pretrain_img_size,
                embed_dim=embed_dim,
                depths=depths,
                num_heads=num_heads,
                window_size=window_size,
                # Detectron2's stochastic depth is imported from a place that timm gives up.
                drop_path_rate=0.0,
                ape=ape,
                out_indices=[STAGE_NAMES.index(name) for name in out_features],
                frozen_stages=frozen_stages,
            )
        blocks = [block for layer in self.layers for block in layer.blocks]
        for i, block in enumerate(blocks):
            if i > 0 and drop_path_rate > 0:
                rate = drop_path_rate * i / (len(blocks) - 1)
                block.drop_path = StochasticDepth(rate, mode="row")
            if use_checkpoint:
                # A subclass without attributes of its own; Detectron2 builds the blocks itself.
                block.__class__ = CheckpointedBlock
        self.global_attention = None
        if global_attention:
            self.global_attention = GlobalAttention(
                self.num_features[-1], num_heads[-1], global_drop_path_rate
            )
        # Read by Backbone.output_shape() and by the base class's size_divisibility, which
        # Detectron2 leaves without its attribute.
        strides = {name: stride for stride, name in LEVEL_NAMES.items()}
        self._out_features = list(out_features)
        self._out_feature_strides = {name: strides[name] for name in out_features}
        self._out_feature_channels = {
            name: self.num_features[STAGE_NAMES.index(name)] for name in out_features
        }
        self._size_divisibility = max(LEVEL_NAMES)

    def train(self, mode: bool = True) -> "SwinBackbone":
        """Set the mode; frozen stages stay in evaluation mode, without stochastic depth."""
        super().train(mode)
        self._freeze_stages()
        return self

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Map normalized images N,3,H,W of any size to feature maps by level name."""
        levels = dict(zip(self._out_features, super().forward(x).values(), strict=True))
        if self.global_attention is not None:
            levels[STAGE_NAMES[-1]] = self.global_attention(levels[STAGE_NAMES[-1]])
        return levels


@BACKBONE_REGISTRY.register()
def build_swin_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build Detectron2's FPN, P2 to P6, on the Swin Transformer described by MODEL.SWIN.

    Raises:
        ValueError: a key of MODEL.SWIN or MODEL.FPN.IN_FEATURES makes no network, or the file of
            MODEL.SWIN.WEIGHTS does not fit it.
    """
    return build_rcnn_fpn(cfg, build_swin_backbone(cfg, input_shape), "MODEL.SWIN.OUT_FEATURES")


@BACKBONE_REGISTRY.register()
def build_swin_p6p7_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build a pyramid for one-stage detectors, P3 to P7, on the network of MODEL.SWIN.

    Raises:
        ValueError: as for `build_swin_fpn_backbone`, or MODEL.SWIN.OUT_FEATURES is other than res3
            to res5.
    """
    return build_p6p7_fpn(cfg, build_swin_backbone(cfg, input_shape), "MODEL.SWIN.OUT_FEATURES")


def build_swin_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SwinBackbone:
    """Build the network of MODEL.SWIN, with weights loaded and leading stages frozen."""
    swin = cfg.MODEL.SWIN
    _check_keys(swin, input_shape.channels)
    net = SwinBackbone(
        embed_dim=swin.EMBED_DIM,
        depths=swin.DEPTHS,
        num_heads=swin.NUM_HEADS,
        window_size=swin.WINDOW_SIZE,
        drop_path_rate=swin.DROP_PATH_RATE,
        ape=swin.APE,
        pretrain_img_size=swin.PRETRAIN_IMG_SIZE,
        out_features=swin.OUT_FEATURES,
        frozen_stages=swin.FROZEN_STAGES,
        use_checkpoint=swin.USE_CHECKPOINT,
        global_attention=swin.GLOBAL_ATTENTION.ENABLED,
        global_drop_path_rate=swin.GLOBAL_ATTENTION.DROP_PATH_RATE,
    )
    if swin.WEIGHTS:
        load_swin_weights(net, swin.WEIGHTS)
    return net


def _check_keys(swin: CfgNode, in_chans: int) -> None:
    num_stages = len(STAGE_NAMES)
    if in_chans != 3:
        raise ValueError(
            f"Detectron2's Swin Transformer takes images of 3 channels, but MODEL.PIXEL_MEAN has "
            f"{in_chans} values; use build_timm_fpn_backbone for other images."
        )
    if not len(swin.DEPTHS) == len(swin.NUM_HEADS) == num_stages:
        raise ValueError(
            f"MODEL.SWIN.DEPTHS {tuple(swin.DEPTHS)} and MODEL.SWIN.NUM_HEADS "
            f"{tuple(swin.NUM_HEADS)} must have {num_stages} numbers each, one for each stage."
        )
    for stage, heads in enumerate(swin.NUM_HEADS):
        channels = swin.EMBED_DIM * 2**stage
        if channels % heads:
            raise ValueError(
                f"The {channels} channels of stage {stage + 1} (MODEL.SWIN.EMBED_DIM "
                f"{swin.EMBED_DIM}) cannot be shared out among {heads} heads "
                "(MODEL.SWIN.NUM_HEADS); change one of them."
            )
    levels = list(swin.OUT_FEATURES)
    if levels != list(STAGE_NAMES[-len(levels) :]):
        raise ValueError(
            f"MODEL.SWIN.OUT_FEATURES is {levels}; choose {list(STAGE_NAMES)} or the last ones of "
            "them, without a gap."
        )
    if not -1 <= swin.FROZEN_STAGES <= num_stages + 1:
        raise ValueError(
            f"MODEL.SWIN.FROZEN_STAGES is {swin.FROZEN_STAGES}; choose -1 (none) to "
            f"{num_stages + 1} (all)."
        )
    rates = {
        "DROP_PATH_RATE": swin.DROP_PATH_RATE,
        "GLOBAL_ATTENTION.DROP_PATH_RATE": swin.GLOBAL_ATTENTION.DROP_PATH_RATE,
    }
    for key, rate in rates.items():
        if not 0 <= rate < 1:
            raise ValueError(f"MODEL.SWIN.{key} is {rate}; it is a probability below 1.")
