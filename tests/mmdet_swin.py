"""mmdetection's Swin Transformer, computed from a state dict."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdet_layers import Layers


class Swin(Layers):
    """The network; maps of tokens are (1, H, W, C)."""

    def _swin(self, x: Tensor) -> list[Tensor]:
        weight = self.state["backbone.patch_embed.projection.weight"]
        x = F.conv2d(x, weight, self.state["backbone.patch_embed.projection.bias"], stride=4)
        x = self._layer_norm("backbone.patch_embed.norm", x.permute(0, 2, 3, 1))
        outputs = []
        for i in range(4):
            for j in range(self._count(f"backbone.stages.{i}.blocks")):
                x = self._swin_block(f"backbone.stages.{i}.blocks.{j}", x, shifted=j % 2 == 1)
            outputs.append(self._layer_norm(f"backbone.norm{i}", x).permute(0, 3, 1, 2))
            if i < 3:
                x = self._merge_patches(f"backbone.stages.{i}.downsample", x)
        return outputs

    def _merge_patches(self, name: str, x: Tensor) -> Tensor:
        """mmdetection's, by unfolding: channels (c, kh, kw)."""
        _, height, width, _ = x.shape
        x = F.pad(x.permute(0, 3, 1, 2), (0, width % 2, 0, height % 2))
        tokens = F.unfold(x, kernel_size=2, stride=2).transpose(1, 2)
        tokens = tokens.reshape(1, (height + 1) // 2, (width + 1) // 2, -1)
        return self._linear(f"{name}.reduction", self._layer_norm(f"{name}.norm", tokens))

    def _swin_block(self, name: str, x: Tensor, shifted: bool) -> Tensor:
        x = x + self._attention(f"{name}.attn.w_msa", self._layer_norm(f"{name}.norm1", x), shifted)
        y = self._linear(f"{name}.ffn.layers.0.0", self._layer_norm(f"{name}.norm2", x))
        return x + self._linear(f"{name}.ffn.layers.1", F.gelu(y))

    def _attention(self, name: str, x: Tensor, shifted: bool) -> Tensor:
        """Attention within windows, each token's partners found one by one."""
        _, height, width, channels = x.shape
        table = self.state[f"{name}.relative_position_bias_table"]
        window, heads = (math.isqrt(len(table)) + 1) // 2, table.shape[1]
        shift = window // 2 if shifted else 0
        full_h, full_w = (-(-n // window) * window for n in (height, width))
        # mmdetection pads after the first norm; padded tokens take part in the attention.
        qkv = self._linear(f"{name}.qkv", F.pad(x, (0, 0, 0, full_w - width, 0, full_h - height)))
        rows, columns = torch.meshgrid(torch.arange(full_h), torch.arange(full_w), indexing="ij")
        rows, columns = rows.flatten(), columns.flatten()
        q, k, v = qkv.reshape(-1, 3, heads, channels // heads).permute(1, 2, 0, 3)
        # Place in the map that is rolled by the shift, and from which side it was rolled over.
        moved_r, moved_c = (rows - shift) % full_h, (columns - shift) % full_w
        group = torch.stack([moved_r // window, moved_c // window, rows < shift, columns < shift])
        together = (group[:, :, None] == group[:, None]).all(0)
        offset = (moved_r[:, None] - moved_r + window - 1) * (2 * window - 1)
        offset = offset + moved_c[:, None] - moved_c + window - 1
        bias = table[offset.where(together, 0)].permute(2, 0, 1)
        scores = q @ k.transpose(1, 2) / math.sqrt(channels // heads) + bias
        y = scores.masked_fill(~together, -math.inf).softmax(-1) @ v
        y = y.permute(1, 0, 2).reshape(1, full_h, full_w, channels)[:, :height, :width]
        return self._linear(f"{name}.proj", y)
