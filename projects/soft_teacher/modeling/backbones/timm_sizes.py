"""Which sizes of images a timm network takes, found without computing any feature."""

import math

import torch
from torch import nn
from torch.func import functional_call

from soft_teacher.modeling.backbones.timm_net import flat_name, has_channels_last

# What tells a block that cuts its map into windows, and its attribute with their sides, in tokens.
_WINDOWS = {
    # Swin, Swin V2: shift a map before they pad it to whole windows, and then let tokens of
    # opposite borders see each other. Where nothing is padded it is the published network.
    "always_partition": "window_size",
    "partition_size": "partition_size",  # MaxViT: other maps fail
    "halo_size": "block_size",  # HaloNet: other maps fail
    "patch_area": "patch_size",  # MobileViT: stretches other maps, V2 without shrinking them again
}


def window_divisibility(net: nn.Module) -> int:
    """What height and width of images must be multiples of for whole windows, in pixels.

    1 for networks without windows, or with windows that pad maps by themselves.
    """
    strides = {flat_name(level["module"]): level["reduction"] for level in net.feature_info.info}
    result, sides = 1, set()
    # What comes after a level, or ahead of the first, works at the stride of the next one.
    for name, child in net.named_children():
        for block in child.modules():
            sides.update(_window_sides(block))
        if name in strides:
            result = math.lcm(result, *(strides[name] * side for side in sides))
            sides.clear()
    return result


def _window_sides(block: nn.Module) -> tuple[int, ...]:
    """Height and width of the windows that a block itself cuts its map into; () without any."""
    from timm.layers import to_2tuple

    for sign, sides in _WINDOWS.items():
        if hasattr(block, sign):
            return to_2tuple(getattr(block, sides))
    return ()


def probe_levels(
    net: nn.Module, in_chans: int
) -> tuple[tuple[int, int], list[torch.Tensor], dict[str, nn.Parameter]]:
    """Send one image through a network on the meta device: shapes without values, in no time.

    Its sides are odd multiples of what images are padded to multiples of, and differ: a size that
    no network was made for. The network itself stays as it is, in training mode.

    Args:
        net: a timm network that makes feature levels.
        in_chans: channels of the images.

    Returns:
        Height and width of the image; the levels as the network gives them; by name, the stand-ins
        of the network's parameters that autograd knows the levels to depend on.
    """
    multiple = math.lcm(window_divisibility(net), *net.feature_info.reduction())
    height, width = 3 * multiple, 5 * multiple
    parameters = {
        name: nn.Parameter(parameter.detach().to("meta"))
        for name, parameter in net.named_parameters()
    }
    buffers = {name: buffer.to("meta") for name, buffer in net.named_buffers()}
    images = torch.empty(1, in_chans, height, width, device="meta")
    net.eval()  # norms of batches refuse single values
    try:
        levels = functional_call(net, {**parameters, **buffers}, (images,))
    finally:
        net.train()
    return (height, width), levels, parameters


def require_all_sizes(net: nn.Module, name: str, in_chans: int) -> None:
    """Refuse a network that cannot be given images of every size that images are padded to.

    Some have position biases for maps of one size only, or lose borders, so that their levels are
    not the image divided by the strides, as the feature pyramid needs them.

    Args:
        net: a timm network that makes feature levels.
        name: MODEL.TIMM.NAME, for the message.
        in_chans: channels of the images.

    Raises:
        ValueError: it is such a network.
    """
    strides = net.feature_info.reduction()
    try:
        (height, width), levels, _ = probe_levels(net, in_chans)
    # What networks raise where a map fits neither their biases nor their windows.
    except (RuntimeError, AssertionError) as error:
        raise ValueError(_refusal(name, f"{type(error).__name__}: {error}")) from error
    first = 1 if has_channels_last(net) else 2
    found = [tuple(level.shape[first : first + 2]) for level in levels]
    expected = [(height // stride, width // stride) for stride in strides]
    if found != expected:
        raise ValueError(
            _refusal(name, f"levels of {height} x {width} pixels are {found}, not {expected}")
        )


def _refusal(name: str, reason: str) -> str:
    return (
        f"MODEL.TIMM.NAME {name!r} does not take images of every size, as a detector must "
        f"({reason}). Choose a network that does, such as 'resnet50', 'convnext_tiny' or "
        "'swin_tiny_patch4_window7_224'; docs/backbones.md names families that do not."
    )
