"""timm's feature networks: made for images of any size, and frozen in part."""

import math

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from soft_teacher.modeling.backbones.frozen_norm import freeze_batch_norms
from soft_teacher.modeling.backbones.weight_files import require_timm


def create_feature_net(
    name: str, out_indices: tuple[int, ...], in_chans: int, drop_path_rate: float
) -> nn.Module:
    """Create timm's `features_only` form of a model with random weights.

    Networks with shifted windows (Swin, Swin V2) are told to take images of any size and to shift
    windows at every one: as timm has them, they take one size and leave the last stage unshifted
    for good, since its feature map is but one window there.

    Args:
        name: MODEL.TIMM.NAME.
        out_indices: MODEL.TIMM.OUT_INDICES.
        in_chans: channels of the images.
        drop_path_rate: MODEL.TIMM.DROP_PATH_RATE.

    Raises:
        ImportError: timm is not installed.
        ValueError: timm has no such model, no such levels, or no stochastic depth in it.
    """
    require_timm("A backbone of MODEL.TIMM")
    import timm

    # The check also keeps timm from asking a hub for names such as "hf-hub:owner/model".
    if not timm.is_model(name):
        raise ValueError(f"MODEL.TIMM.NAME is {name!r}, which timm does not know.")
    try:
        net = _create(name, out_indices, in_chans)
    # What timm raises for a model without feature levels, or without one of these.
    except (RuntimeError, AssertionError, IndexError) as error:
        raise ValueError(
            f"timm's MODEL.TIMM.NAME {name!r} has no feature levels {tuple(out_indices)} "
            f"(MODEL.TIMM.OUT_INDICES): {error}"
        ) from error
    # Which of its arguments a model knows is seen from what it is made of.
    arguments = {}
    if shifting_blocks(net):
        arguments = {"strict_img_size": False, "always_partition": True}
    if drop_path_rate > 0 or _has_stochastic_depth(net):
        arguments["drop_path_rate"] = drop_path_rate
    if not arguments:
        return net
    try:
        return _create(name, out_indices, in_chans, **arguments)
    except TypeError as error:
        raise ValueError(
            f"MODEL.TIMM.NAME {name!r} cannot be built with MODEL.TIMM.DROP_PATH_RATE "
            f"{drop_path_rate}: {error}"
        ) from error


def _create(name: str, out_indices: tuple[int, ...], in_chans: int, **arguments) -> nn.Module:
    import timm

    return timm.create_model(
        name,
        pretrained=False,
        features_only=True,
        out_indices=tuple(out_indices),
        in_chans=in_chans,
        **arguments,
    )


def _has_stochastic_depth(net: nn.Module) -> bool:
    from timm.layers import DropPath

    return any(isinstance(module, DropPath) for module in net.modules())


def flat_name(key: str) -> str:
    """A name in which timm's feature networks and whole models agree.

    timm may rename "stages.0" to "stages_0" in the feature network, never more than that.
    """
    return key.replace(".", "_")


def shifting_blocks(module: nn.Module) -> list[nn.Module]:
    """Blocks with attention in windows that are, or could be, shifted."""
    return [block for block in module.modules() if hasattr(block, "always_partition")]


def has_channels_last(net: nn.Module) -> bool:
    """Whether the feature maps of a timm network are N,H,W,C."""
    return getattr(net, "output_fmt", "NCHW") == "NHWC"


def is_normed_by_layers(net: nn.Module) -> bool:
    """Whether a network has layer norms and no batch norms.

    Such networks add up what their blocks say, and norm it only where it is read: their feature
    maps are sums of any size.
    """
    modules = list(net.modules())
    has_layer_norms = any(isinstance(module, nn.LayerNorm) for module in modules)
    return has_layer_norms and not any(isinstance(module, _BatchNorm) for module in modules)


def window_divisibility(net: nn.Module) -> int:
    """What height and width of images must be multiples of for shifted windows, in pixels.

    timm's Swin shifts a feature map before it pads it to whole windows, and then lets tokens of
    opposite borders see each other. Where every map is whole windows nothing is padded, and it is
    the published network. 1 for networks without shifted windows.
    """
    result = 1
    for level in net.feature_info.info:
        stage = getattr(net, flat_name(level["module"]), None)
        for block in shifting_blocks(stage) if isinstance(stage, nn.Module) else ():
            result = math.lcm(result, *(level["reduction"] * side for side in block.window_size))
    return result


def freeze_levels(net: nn.Module, num_levels: int, in_chans: int) -> None:
    """Stop the training of all that the first `num_levels` feature levels depend on, in place.

    That is the stem and every block up to the last of these levels: 1 freezes what gives the
    first level of OUT_INDICES ("res2" as a rule; MODEL.BACKBONE.FREEZE_AT 2 of Detectron2's
    ResNet), 0 freezes nothing. Batch norms among it are frozen whole, and nothing among it is
    dropped at random any more.

    Since timm lays its networks out in several ways, the parameters are found by asking autograd
    which of them reach the level.

    Raises:
        ValueError: the network has fewer levels.
    """
    count = len(net.feature_info.reduction())
    if not 0 <= num_levels <= count:
        raise ValueError(f"MODEL.TIMM.FREEZE_AT is {num_levels}; choose 0 to {count}, the levels.")
    if num_levels == 0:
        return
    parameters = list(net.parameters())
    net.eval()  # the probe must not move running statistics
    # Two pixels at stride 32.
    levels = net(torch.zeros(1, in_chans, 64, 64))[:num_levels]
    grads = torch.autograd.grad(sum(x.sum() for x in levels), parameters, allow_unused=True)
    net.train()
    for parameter, grad in zip(parameters, grads, strict=True):
        if grad is not None:
            parameter.requires_grad_(False)
    freeze_batch_norms(net, lambda norm: norm.affine and not norm.weight.requires_grad)
    _stop_dropping(net)


def _stop_dropping(net: nn.Module) -> None:
    """Switch dropout and stochastic depth off in all blocks that are frozen whole."""
    from timm.layers import DropPath

    for block in net.modules():
        parameters = list(block.parameters())
        if not parameters or any(p.requires_grad for p in parameters):
            continue
        for module in block.modules():
            if isinstance(module, DropPath):
                module.drop_prob = 0.0
            elif isinstance(module, nn.Dropout):
                module.p = 0.0
