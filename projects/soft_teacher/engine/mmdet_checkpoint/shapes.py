"""What a detector of mmdetection is built of, as far as its weights tell."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ResNetShape:
    """A ResNet or ResNeXt.

    Attributes:
        depth: 18, 34, 50, 101 or 152.
        stem_channels: of the first convolution.
        res2_channels: that the first stage puts out.
        num_groups: of the 3x3 convolutions; 1 but for ResNeXt.
        width_per_group: channels of a group in the first stage.
    """

    depth: int
    stem_channels: int
    res2_channels: int
    num_groups: int
    width_per_group: int


@dataclass(frozen=True)
class SwinShape:
    """A Swin Transformer.

    Attributes:
        embed_dim: channels of the first stage.
        depths: blocks of each stage.
        num_heads: attention heads of each stage.
        window_size: side of the attention window, in tokens.
    """

    embed_dim: int
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_size: int


@dataclass(frozen=True)
class BoxHeadShape:
    """The convolutions and fully connected layers of a box head; norm is "", "BN" or "GN"."""

    num_conv: int
    conv_dim: int
    norm: str
    num_fc: int
    fc_dim: int
    pooler_resolution: int
    class_agnostic: bool


@dataclass(frozen=True)
class MaskHeadShape:
    """A mask head; norm is "", "BN" or "GN".

    Attributes:
        has_flow: whether the heads of later stages take in what those before them made (HTC).
    """

    num_conv: int
    conv_dim: int
    norm: str
    class_agnostic: bool
    has_flow: bool


@dataclass(frozen=True)
class Architecture:
    """A two-stage or cascaded detector on a feature pyramid.

    Attributes:
        fpn_channels: of the maps P2 to P6.
        fpn_norm: "", "BN" or "GN".
        rpn_dims: channels of the RPN's convolutions.
        num_classes: without background.
        num_stages: box heads in a row, 1 or 3.
        mask: None without masks.
        num_semantic_classes: None without HTC's semantic branch.
    """

    backbone: ResNetShape | SwinShape
    fpn_channels: int
    fpn_norm: str
    rpn_dims: tuple[int, ...]
    num_classes: int
    num_stages: int
    box: BoxHeadShape
    mask: MaskHeadShape | None
    num_semantic_classes: int | None

    @property
    def is_cascade(self) -> bool:
        return self.num_stages > 1

    @property
    def is_htc(self) -> bool:
        has_flow = self.mask is not None and self.mask.has_flow
        return has_flow or self.num_semantic_classes is not None

    @property
    def name(self) -> str:
        """For people, such as "Cascade Mask R-CNN, ResNet-50, 80 classes"."""
        if self.is_htc:
            semantic = "with" if self.num_semantic_classes is not None else "without"
            detector = f"HTC {semantic} semantic branch"
        else:
            parts = ("Cascade" * self.is_cascade, "Mask" * (self.mask is not None))
            detector = f"{' '.join(filter(None, parts)) or 'Faster'} R-CNN"
        net = self.backbone
        if isinstance(net, ResNetShape):
            kind = "ResNet" if net.num_groups == 1 else "ResNeXt"
            backbone = f"{kind}-{net.depth}"
        else:
            backbone = f"Swin Transformer of {net.embed_dim} channels"
        return f"{detector}, {backbone}, {self.num_classes} classes"
