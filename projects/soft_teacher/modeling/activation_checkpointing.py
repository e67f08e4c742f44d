"""Less memory for more time: activations of the backbone that are computed again in backward."""

from functools import partial

from detectron2.modeling.backbone import ResNet
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(backbone: nn.Module) -> None:
    """Keep only the inputs of a backbone's residual blocks for the backward pass, in place.

    Losses and gradients stay the same. Without gradients, as in the teacher, nothing changes.

    Args:
        backbone: an FPN over a `ResNet` of Detectron2, or such a ResNet.

    Raises:
        ValueError: it has another network.
    """
    net = getattr(backbone, "bottom_up", backbone)
    if not isinstance(net, ResNet):
        raise ValueError(
            "MODEL.BACKBONE.CHECKPOINT_ACTIVATIONS is for Detectron2's ResNets, not for "
            f"{type(net).__name__}; set it to False. (Swin has MODEL.SWIN.USE_CHECKPOINT.)"
        )
    for stage in net.stages:
        for block in stage:
            # A ResNet draws no random numbers, so their state need not be kept for the second run.
            block.forward = partial(
                checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
            )
