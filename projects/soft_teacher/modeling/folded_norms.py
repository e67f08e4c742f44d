"""Frozen batch norms folded into the convolutions before them.

A frozen norm multiplies each channel by a constant s and adds another, so
s * conv(x, w) + b = conv(x, s * w) + b: the weights are scaled in place of the much larger feature
map. Results and gradients are the same up to rounding, parameters and their names as they were.
"""

from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import Tensor, nn


class FoldedConv2d(Conv2d):
    """Detectron2's convolution with a frozen norm, as one operation.

    The weights are scaled in each forward pass, so an optimizer or a moving average may change
    them at any time.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, C, H, W) to (N, C', H', W')."""
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        bias = norm.bias - norm.running_mean * scale
        if self.bias is not None:
            bias = bias + self.bias * scale
        x = self._conv_forward(x, self.weight * scale.view(-1, 1, 1, 1), bias)
        return x if self.activation is None else self.activation(x)


def fold_frozen_norms(model: nn.Module) -> None:
    """Fold all frozen norms of Detectron2's convolutions, in place.

    Raises:
        ValueError: there are none.
    """
    convolutions = [
        x for x in model.modules() if type(x) is Conv2d and isinstance(x.norm, FrozenBatchNorm2d)
    ]
    if not convolutions:
        raise ValueError(
            "MODEL.FOLD_FROZEN_NORMS is True, but the model has no convolution of Detectron2 with "
            "a frozen norm (MODEL.RESNETS.NORM FrozenBN has); set it to False."
        )
    for convolution in convolutions:
        # The same object of another class: parameters, hooks and names stay.
        convolution.__class__ = FoldedConv2d
