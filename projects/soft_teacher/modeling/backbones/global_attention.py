"""The layer that HTC++ adds behind the last stage of its backbone.

Shape shorthand: N images, C channels, H, W the map's height and width, T = H W tokens.

Liu et al. (Swin Transformer, supplement A2.2) name "an extra global self-attention layer" and say
no more of it. This is the model that ViT-Adapter's HTC++ has in its place (its `ExtraAttention`,
github.com/czczup/ViT-Adapter): a pre-norm block of full self-attention and an MLP, then a norm.
"""

import torch
from torch import nn
from torchvision.ops import StochasticDepth

MLP_RATIO = 4
INIT_STD = 0.02
"""Of linear layers, as in Swin and ViT-Adapter; biases start at 0."""


class GlobalAttention(nn.Module):
    """Lets every place of a feature map see every other one.

    With x the map's tokens and d the stochastic depth of training,

        y = x + d(MHSA(LN(x))),    z = y + d(MLP(LN(y))),    out = LN(z).

    Places that pad an image to the size of its batch are seen as well, as in ViT-Adapter's.
    """

    def __init__(self, channels: int, num_heads: int, drop_path_rate: float) -> None:
        """
        Args:
            channels: C.
            num_heads: attention heads, a divisor of C.
            drop_path_rate: probability with which an image passes by each half of the block.
        """
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, num_heads, batch_first=True)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(
            nn.Linear(channels, MLP_RATIO * channels),
            nn.GELU(),
            nn.Linear(MLP_RATIO * channels, channels),
        )
        self.drop_path = StochasticDepth(drop_path_rate, mode="row")
        self.norm = nn.LayerNorm(channels)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif not name.startswith("norm"):
                nn.init.trunc_normal_(parameter, std=INIT_STD)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map N,C,H,W to N,C,H,W."""
        tokens = x.flatten(2).transpose(1, 2)  # N,T,C
        normed = self.norm1(tokens)
        # Without its weights attention needs no T x T matrix of its own in memory.
        seen, _ = self.attention(normed, normed, normed, need_weights=False)
        tokens = tokens + self.drop_path(seen)
        tokens = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return self.norm(tokens).transpose(1, 2).unflatten(2, x.shape[2:])
