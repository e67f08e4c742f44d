"""Layers computed from a state dict of mmdetection."""

import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]

# Standard deviation of the outputs of layers after `calibrate`, by the end of their names.
_SPREADS = {"rpn_cls": 1.5, "rpn_reg": 0.3, "fc_cls": 2.0, "fc_reg": 0.7, "conv_logits": 2.0}


class Layers:
    """The layers of a network by their names.

    Args:
        state: of the network.
        calibrates: scale each layer's weights when it is used first, in place, so that random ones
            make a network whose numbers stay in range.
    """

    def __init__(self, state: State, calibrates: bool):
        self.state = state
        self._to_settle = {x.removesuffix(".weight") for x in state} if calibrates else set()

    def _settle(self, name: str, y: Tensor, channel_dim: int = 1) -> Tensor:
        if name not in self._to_settle or y.numel() < 2:
            return y
        self._to_settle.remove(name)
        if f"{name}.bias" in self.state:
            # Otherwise what all inputs share would hide where they differ.
            others = [d for d in range(y.ndim) if d != channel_dim % y.ndim]
            mean = y.mean(others, keepdim=True)
            self.state[f"{name}.bias"] -= mean.flatten()
            y = y - mean
        factor = _SPREADS.get(name.rpartition(".")[2], 1.0) / y.std()
        for part in ("weight", "bias"):
            if f"{name}.{part}" in self.state:
                self.state[f"{name}.{part}"] *= factor
        return y * factor

    def _conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        """A convolution; its padding keeps the size at stride 1."""
        weight = self.state[f"{name}.weight"]
        groups = x.shape[1] // weight.shape[1]
        bias = self.state.get(f"{name}.bias")
        y = F.conv2d(x, weight, bias, stride, padding=weight.shape[-1] // 2, groups=groups)
        return self._settle(name, y)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        y = F.linear(x, self.state[f"{name}.weight"], self.state.get(f"{name}.bias"))
        return self._settle(name, y, channel_dim=-1)

    def _batch_norm(self, name: str, x: Tensor) -> Tensor:
        s = self.state
        weight, bias = s[f"{name}.weight"], s[f"{name}.bias"]
        return F.batch_norm(x, s[f"{name}.running_mean"], s[f"{name}.running_var"], weight, bias)

    def _layer_norm(self, name: str, x: Tensor) -> Tensor:
        weight = self.state[f"{name}.weight"]
        return F.layer_norm(x, weight.shape, weight, self.state[f"{name}.bias"])

    def _module(self, name: str, x: Tensor, relu: bool = True) -> Tensor:
        """mmcv's ConvModule: convolution, perhaps a norm, ReLU."""
        y = self._conv(f"{name}.conv", x)
        if f"{name}.gn.weight" in self.state:
            weight = self.state[f"{name}.gn.weight"]
            y = F.group_norm(y, 32, weight, self.state[f"{name}.gn.bias"])
        elif f"{name}.bn.weight" in self.state:
            y = self._batch_norm(f"{name}.bn", y)
        return F.relu(y) if relu else y

    def _count(self, name: str) -> int:
        """How many modules a list has: names NAME.0 and so on."""
        return len(
            {k[len(name) + 1 :].split(".")[0] for k in self.state if k.startswith(f"{name}.")}
        )
