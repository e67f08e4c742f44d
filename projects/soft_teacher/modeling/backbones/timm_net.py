"""timm's feature networks: made for images of any size, and what they are made of."""

from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

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

    In the feature network timm may rename "stages.0" to "stages_0", or put the whole model, cut,
    into "model", never more than that.
    """
    return key.removeprefix("model.").replace(".", "_")


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


def undecayed_parameters(net: nn.Module) -> list[nn.Parameter]:
    """Parameters of a feature network that timm's whole model names in `no_weight_decay()`.

    As a rule those of position biases and embeddings. The feature network has lost that method,
    so the whole model is built for its answer: seconds for a large one. Networks without it have
    no such parameters.
    """
    import timm

    # Random weights that nobody uses must not change what a training draws.
    with torch.random.fork_rng(devices=[]):
        whole = timm.create_model(net.pretrained_cfg["architecture"], pretrained=False)
    patterns = whole.no_weight_decay() if hasattr(whole, "no_weight_decay") else ()
    names = {
        flat_name(name)
        for name, _ in whole.named_parameters()
        # timm 1.0.15 names Swin V2's modules instead of what they own.
        if any(fnmatchcase(name, end) for pattern in patterns for end in (pattern, f"{pattern}.*"))
    }
    return [p for name, p in net.named_parameters() if flat_name(name) in names]
