"""The semantic branch of HTC (Chen et al., CVPR 2019, sec. 3.3), as mmdetection has it.

Shape shorthand: N images of H x W pixels, padding included; C channels of the pyramid; h x w cells
of its level of stride 8, h = H / 8; L semantic classes; R RoIs of all images.

All levels of the pyramid are brought to the size of the one of stride 8 and summed; convolutions
make of the sum logits, which learn from maps of things and stuff, and an embedding, which joins
the feature maps and is added to the features of every RoI.
"""

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor, nn

IGNORED = 255
"""Of a map of labels: a pixel that nothing is known of. Detectron2's and COCO-stuff's value."""
EMBEDDING = "semantic_embedding"
"""Name of the embedding among the feature maps."""
STRIDE = 8
NUM_CONVS = 4
# Side of the RoI features taken from the embedding; box features get them averaged to their own.
RESOLUTION = 14


class FusedSemanticHead(nn.Module):
    """Semantic logits and an embedding from the levels of a feature pyramid.

    Attributes:
        in_features: names of the levels, finest first.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: list[str],
        fusion_level: int,
        channels: int,
        num_classes: int,
        loss_weight: float,
    ):
        """
        Args:
            in_features: names of the levels, finest first.
            fusion_level: index of the one whose size the others take.
            channels: C, of every level.
            num_classes: L.
            loss_weight: see MODEL.ROI_HTC.SEMANTIC_LOSS_WEIGHT.
        """
        super().__init__()
        self.in_features = in_features
        self.fusion_level = fusion_level
        self.loss_weight = loss_weight
        self.lateral_convs = nn.ModuleList(_conv(channels, 1) for _ in in_features)
        self.convs = nn.ModuleList(_conv(channels, 3) for _ in range(NUM_CONVS))
        self.conv_embedding = _conv(channels, 1)
        self.conv_logits = Conv2d(channels, num_classes, 1)
        weight_init.c2_msra_fill(self.conv_logits)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """Arguments of the constructor.

        Raises:
            ValueError: the pyramid has no level of stride 8, or labels would not fit into a byte.
        """
        names = sorted(input_shape, key=lambda name: input_shape[name].stride)
        strides = [input_shape[name].stride for name in names]
        num_classes = cfg.MODEL.ROI_HTC.SEMANTIC_NUM_CLASSES
        if STRIDE not in strides or len({input_shape[name].channels for name in names}) != 1:
            raise ValueError(
                "MODEL.ROI_HTC.SEMANTIC_ON needs a feature pyramid with a level of stride 8, and "
                f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} has the strides {strides}; take a "
                "backbone with an FPN, or set the key to False."
            )
        if not 1 <= num_classes <= IGNORED:
            raise ValueError(
                f"MODEL.ROI_HTC.SEMANTIC_NUM_CLASSES is {num_classes}; it must lie between 1 and "
                f"{IGNORED}, the value of pixels without a label."
            )
        return {
            "in_features": names,
            "fusion_level": strides.index(STRIDE),
            "channels": input_shape[names[0]].channels,
            "num_classes": num_classes,
            "loss_weight": cfg.MODEL.ROI_HTC.SEMANTIC_LOSS_WEIGHT,
        }

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """What logits and embedding are made of, (N, C, h, w)."""
        levels = [features[name] for name in self.in_features]
        size = levels[self.fusion_level].shape[-2:]
        fused = None
        for i, (level, conv) in enumerate(zip(levels, self.lateral_convs, strict=True)):
            if i != self.fusion_level:
                level = F.interpolate(level, size, mode="bilinear", align_corners=True)
            fused = conv(level) if fused is None else fused + conv(level)
        for conv in self.convs:
            fused = conv(fused)
        return fused

    def loss(self, fused: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of the labeled cells, divided by the number of all N x h x w cells.

        A mean over the labeled ones, as `F.cross_entropy` takes it, would not be a number where
        there are none, and would give the few labels of a hardly labeled map a large weight.

        Args:
            fused: (N, C, h, w), from :meth:`forward`.
            labels: uint8 (N, H, W), 0 to L - 1 or `IGNORED`. A cell has the label of its first
                pixel: nearest neighbor by 1/8, as mmdetection takes it.

        Returns:
            0-d, weighted.
        """
        logits = self.conv_logits(fused).float()
        labels = labels[:, ::STRIDE, ::STRIDE].long()
        assert labels.shape == (len(logits), *logits.shape[2:]), (labels.shape, logits.shape)
        total = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        return self.loss_weight * total / labels.numel()

    def embed(self, fused: Tensor) -> Tensor:
        """The embedding (N, C, h, w) from the result (N, C, h, w) of :meth:`forward`."""
        return self.conv_embedding(fused)


def _conv(channels: int, kernel_size: int) -> Conv2d:
    conv = Conv2d(
        channels, channels, kernel_size, padding=kernel_size // 2, activation=nn.ReLU(inplace=True)
    )
    weight_init.c2_msra_fill(conv)
    return conv


class FusedPooler(nn.Module):
    """RoI features of a pyramid plus those of the embedding; it has no parameters.

    Args:
        pooler: of the pyramid.
    """

    def __init__(self, pooler: ROIPooler):
        super().__init__()
        self.pooler = pooler
        self.embedding_pooler = ROIPooler(RESOLUTION, (1 / STRIDE,), 0, "ROIAlignV2")

    def forward(self, features: list[Tensor], boxes: list[Boxes]) -> Tensor:
        """Features (R, C, M, M) of boxes in N images.

        Args:
            features: the levels of the pyramid, then the embedding.
            boxes: N times R_i boxes.
        """
        *levels, embedding = features
        pooled = self.pooler(levels, boxes)
        fused = self.embedding_pooler([embedding], boxes)
        if self.pooler.output_size != self.embedding_pooler.output_size:
            fused = F.adaptive_avg_pool2d(fused, self.pooler.output_size)
        return pooled + fused
