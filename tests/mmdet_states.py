"""Random state dicts of small networks by mmdetection's names, and their files."""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmdet_layers import State
from mmdet_reference import Detector


def random_image(seed: int = 7, size: tuple[int, int] = (90, 140)) -> Tensor:
    """An RGB image (3, H, W) of blocks and noise, as floats from 0 to 255."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.rand(1, 3, 6, 9, generator=generator)
    blocks = torch.nn.functional.interpolate(blocks, size, mode="bilinear")[0]
    noise = torch.rand(3, *size, generator=generator)
    return (200 * blocks + 55 * noise).round()


class _Weights:
    """Draws the parameters of layers into a state dict."""

    def __init__(self, seed: int):
        self.state: State = OrderedDict()
        self._generator = torch.Generator().manual_seed(seed)

    def layer(self, name: str, out: int, *rest: int, bias: bool = True) -> None:
        self.state[f"{name}.weight"] = torch.randn(out, *rest, generator=self._generator)
        if bias:
            self.state[f"{name}.bias"] = 0.3 * torch.randn(out, generator=self._generator)

    def norm(self, name: str, channels: int, statistics: bool = True) -> None:
        draws = torch.rand(4, channels, generator=self._generator)
        self.state[f"{name}.weight"] = 0.5 + draws[0]
        self.state[f"{name}.bias"] = 0.4 * draws[1] - 0.2
        if statistics:
            self.state[f"{name}.running_mean"] = 0.4 * draws[2] - 0.2
            self.state[f"{name}.running_var"] = 0.5 + draws[3]
            self.state[f"{name}.num_batches_tracked"] = torch.tensor(3)

    def resnet(self, blocks: tuple[int, ...], bottleneck: bool, width: int, groups: int) -> list:
        self.layer("backbone.conv1", width, 3, 7, 7, bias=False)
        self.norm("backbone.bn1", width)
        channels, outputs = width, []
        for i, count in enumerate(blocks, start=1):
            middle = width * 2 ** (i - 1)
            out = 4 * middle if bottleneck else middle
            for j in range(count):
                name = f"backbone.layer{i}.{j}"
                if bottleneck:
                    sizes = [(middle, channels, 1), (middle, middle // groups, 3), (out, middle, 1)]
                else:
                    sizes = [(out, channels, 3), (out, out, 3)]
                for k, (a, b, side) in enumerate(sizes, start=1):
                    self.layer(f"{name}.conv{k}", a, b, side, side, bias=False)
                    self.norm(f"{name}.bn{k}", a)
                self.state[f"{name}.bn{len(sizes)}.weight"] *= 0.3
                if j == 0 and (channels != out or i > 1):
                    self.layer(f"{name}.downsample.0", out, channels, 1, 1, bias=False)
                    self.norm(f"{name}.downsample.1", out)
                channels = out
            outputs.append(channels)
        return outputs

    def swin(self, width: int, depths: tuple[int, ...], heads: tuple[int, ...], window: int):
        self.layer("backbone.patch_embed.projection", width, 3, 4, 4)
        self.state["backbone.patch_embed.projection.weight"] /= 7
        self.norm("backbone.patch_embed.norm", width, statistics=False)
        for i, (depth, num_heads) in enumerate(zip(depths, heads, strict=True)):
            c = width * 2**i
            for j in range(depth):
                name = f"backbone.stages.{i}.blocks.{j}"
                self.norm(f"{name}.norm1", c, statistics=False)
                table = torch.randn((2 * window - 1) ** 2, num_heads, generator=self._generator)
                self.state[f"{name}.attn.w_msa.relative_position_bias_table"] = table
                self.state[f"{name}.attn.w_msa.relative_position_index"] = _window_index(window)
                self.layer(f"{name}.attn.w_msa.qkv", 3 * c, c)
                self.layer(f"{name}.attn.w_msa.proj", c, c)
                self.norm(f"{name}.norm2", c, statistics=False)
                self.layer(f"{name}.ffn.layers.0.0", 4 * c, c)
                self.layer(f"{name}.ffn.layers.1", c, 4 * c)
            if i < 3:
                self.norm(f"backbone.stages.{i}.downsample.norm", 4 * c, statistics=False)
                self.layer(f"backbone.stages.{i}.downsample.reduction", 2 * c, 4 * c, bias=False)
            self.norm(f"backbone.norm{i}", c, statistics=False)
        return [width * 2**i for i in range(4)]

    def module(self, name: str, out: int, channels: int, side: int, norm: str = "") -> None:
        self.layer(f"{name}.conv", out, channels, side, side, bias=not norm)
        if norm:
            self.norm(f"{name}.{norm}", out, statistics=norm == "bn")


def _window_index(window: int) -> Tensor:
    """For each pair of tokens of a window the row of the table of biases."""
    y, x = torch.arange(window).repeat_interleave(window), torch.arange(window).repeat(window)
    rows, columns = y[:, None] - y + window - 1, x[:, None] - x + window - 1
    return rows * (2 * window - 1) + columns


@dataclass(frozen=True)
class Sizes:
    """Of a small detector.

    Attributes:
        blocks: of the ResNet's stages; None for a Swin Transformer of `width` channels.
        mask_convs: convolutions of each mask head, None without masks.
        flow: whether later mask heads have `conv_res`.
        semantic_classes: of HTC's semantic branch, None without it.
    """

    blocks: tuple[int, ...] | None = (3, 4, 6, 3)
    bottleneck: bool = True
    width: int = 8
    groups: int = 1
    channels: int = 16
    fpn_norm: str = ""
    rpn_dims: tuple[int, ...] = (12,)
    num_classes: int = 5
    num_stages: int = 1
    box_convs: int = 0
    box_norm: str = ""
    fc_dims: tuple[int, ...] = (24, 24)
    class_agnostic: bool = False
    mask_convs: int | None = None
    mask_dim: int = 16
    class_agnostic_mask: bool = False
    flow: bool = False
    semantic_classes: int | None = None


def random_state(style: str = "pytorch", seed: int = 0, **sizes) -> State:
    """A state dict of mmdetection whose network has activations of ordinary size; see `Sizes`."""
    size, draw = Sizes(**sizes), _Weights(seed)
    if size.blocks is None:
        maps = draw.swin(size.width, (2, 2, 2, 2), (1, 2, 2, 4), window=4)
    else:
        maps = draw.resnet(size.blocks, size.bottleneck, size.width, size.groups)
    for i, c in enumerate(maps):
        draw.module(f"neck.lateral_convs.{i}", size.channels, c, 1, size.fpn_norm)
        draw.module(f"neck.fpn_convs.{i}", size.channels, size.channels, 3, size.fpn_norm)
    _draw_rpn(draw, size)
    for k in range(size.num_stages):
        stage = f"{k}." if size.num_stages > 1 else ""
        _draw_box_head(draw, size, f"roi_head.bbox_head.{stage}")
        if size.mask_convs is not None:
            has_flow = size.flow and k > 0
            _draw_mask_head(draw, size, f"roi_head.mask_head.{stage}", has_flow)
    if size.semantic_classes is not None:
        _draw_semantic_head(draw, size)
    Detector(draw.state, style, 0.05, calibrates=True).detect(random_image())
    return draw.state


def _draw_rpn(draw: _Weights, size: Sizes) -> None:
    inputs = size.channels
    for i, dim in enumerate(size.rpn_dims):
        several = len(size.rpn_dims) > 1
        draw.layer(f"rpn_head.rpn_conv{f'.{i}.conv' if several else ''}", dim, inputs, 3, 3)
        inputs = dim
    draw.layer("rpn_head.rpn_cls", 3, inputs, 1, 1)
    draw.layer("rpn_head.rpn_reg", 12, inputs, 1, 1)


def _draw_box_head(draw: _Weights, size: Sizes, head: str) -> None:
    for i in range(size.box_convs):
        draw.module(f"{head}shared_convs.{i}", size.channels, size.channels, 3, size.box_norm)
    inputs = size.channels * 49
    for i, dim in enumerate(size.fc_dims):
        draw.layer(f"{head}shared_fcs.{i}", dim, inputs)
        inputs = dim
    draw.layer(f"{head}fc_cls", size.num_classes + 1, inputs)
    draw.layer(f"{head}fc_reg", 4 if size.class_agnostic else 4 * size.num_classes, inputs)


def _draw_mask_head(draw: _Weights, size: Sizes, head: str, has_flow: bool) -> None:
    for i in range(size.mask_convs):
        draw.module(f"{head}convs.{i}", size.mask_dim, size.mask_dim if i else size.channels, 3)
    draw.layer(f"{head}upsample", size.mask_dim, size.mask_dim, 2, 2)
    num_maps = 1 if size.class_agnostic_mask else size.num_classes
    draw.layer(f"{head}conv_logits", num_maps, size.mask_dim, 1, 1)
    if has_flow:
        draw.module(f"{head}conv_res", size.channels, size.mask_dim, 1)


def _draw_semantic_head(draw: _Weights, size: Sizes) -> None:
    head = "roi_head.semantic_head"
    for i in range(5):
        draw.module(f"{head}.lateral_convs.{i}", size.channels, size.channels, 1)
    for i in range(4):
        draw.module(f"{head}.convs.{i}", size.channels, size.channels, 3)
    draw.module(f"{head}.conv_embedding", size.channels, size.channels, 1)
    draw.layer(f"{head}.conv_logits", size.semantic_classes, size.channels, 1, 1)


def by_names_of_swins_authors(state: State) -> State:
    """The same network as the detectors of Swin's authors store it.

    Their names are those that mmdetection's converter reads
    (tools/model_converters/swinv1_to_mmdet.py). Patch merging joins the whole maps of the tokens
    (0, 0), (1, 0), (0, 1) and (1, 1), so channel c of the token in row kh and column kw comes from
    mmdetection's 4c + 2kh + kw.
    """
    theirs = {"patch_embed.projection": "patch_embed.proj", ".attn.w_msa.": ".attn."}
    theirs |= {".ffn.layers.0.0.": ".mlp.fc1.", ".ffn.layers.1.": ".mlp.fc2."}
    theirs |= {"backbone.stages.": "backbone.layers."}
    renamed: State = OrderedDict()
    for name, tensor in state.items():
        if ".downsample." in name and name.startswith("backbone.stages."):
            channels = range(tensor.shape[-1] // 4)
            tokens = [(0, 0), (1, 0), (0, 1), (1, 1)]
            tensor = tensor[..., [4 * c + 2 * kh + kw for kh, kw in tokens for c in channels]]
        for old, new in theirs.items():
            name = name.replace(old, new) if name.startswith("backbone.") else name
        renamed[name] = tensor
    return renamed


def save_mmdet_file(state: State, path: Path, **meta) -> Path:
    """A file as mmcv writes it, with the state of an optimizer beside the weights."""
    optimizer = {"state": {}, "param_groups": [{"lr": 0.01, "momentum": 0.9}]}
    torch.save({"meta": {"iter": 10, **meta}, "state_dict": state, "optimizer": optimizer}, path)
    return path
