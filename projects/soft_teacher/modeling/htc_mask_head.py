"""The mask head of one stage of HTC, and the flow of information from the one before it.

Shape shorthand: R RoIs, C channels of RoI features, D of the head, M x M cells of RoI features.
"""

import fvcore.nn.weight_init as weight_init
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from torch import Tensor, nn


class HTCMaskHead(MaskRCNNConvUpsampleHead):
    """Mask R-CNN's head, in two parts: a trunk of convolutions, and what predicts from it.

    The trunk of the stage before enters, by `conv_res`, where the RoI features do (HTC, Chen et
    al., CVPR 2019, eq. 5; mmdetection's `HTCMaskHead`). Gradients flow back through it.
    """

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        num_classes: int,
        conv_dims: list[int],
        conv_norm: str = "",
        has_flow: bool,
        **kwargs,
    ):
        """
        Args:
            input_shape, num_classes, conv_dims, conv_norm: see the parent.
            has_flow: whether the trunk of another head enters.
        """
        super().__init__(
            input_shape,
            num_classes=num_classes,
            conv_dims=conv_dims,
            conv_norm=conv_norm,
            **kwargs,
        )
        self.has_flow = has_flow
        if has_flow:
            channels = input_shape.channels
            self.conv_res = Conv2d(
                conv_dims[-2] if len(conv_dims) > 1 else channels,
                channels,
                kernel_size=1,
                bias=not conv_norm,
                norm=get_norm(conv_norm, channels),
                activation=nn.ReLU(),
            )
            weight_init.c2_msra_fill(self.conv_res)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec, has_flow: bool) -> dict:
        return {**super().from_config(cfg, input_shape), "has_flow": has_flow}

    def trunk(self, x: Tensor, before: Tensor | None) -> Tensor:
        """The map (R, D, M, M) before the deconvolution.

        Args:
            x: (R, C, M, M), RoI features.
            before: (R, D, M, M), the trunk of the stage before, of the same RoIs. It has no effect
                on a head without flow.
        """
        if self.has_flow:
            x = x + self.conv_res(before)
        for conv in self.conv_norm_relus:
            x = conv(x)
        return x

    def predict(self, trunk: Tensor) -> Tensor:
        """Logits (R, K, 2M, 2M), or (R, 1, 2M, 2M) if agnostic, from a trunk (R, D, M, M)."""
        return self.predictor(self.deconv_relu(self.deconv(trunk)))

    def layers(self, x: Tensor) -> Tensor:
        # The parent's runs through all modules, `conv_res` among them.
        raise NotImplementedError("Stages of HTC predict by trunk() and predict().")
