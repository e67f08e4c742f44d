"""How a model's arithmetic is carried out: the same results, up to rounding, faster or smaller."""

import torch
from detectron2.config import CfgNode
from torch import nn

from soft_teacher.modeling.activation_checkpointing import checkpoint_activations
from soft_teacher.modeling.folded_norms import fold_frozen_norms


def settle_execution(cfg: CfgNode, model: nn.Module) -> None:
    """Apply CHANNELS_LAST, FOLD_FROZEN_NORMS and CHECKPOINT_ACTIVATIONS of MODEL, in place.

    Copies of the model made after it, such as the teacher, are carried out alike.

    Raises:
        ValueError: a key does not go with the model.
    """
    if cfg.MODEL.CHANNELS_LAST:
        model.to(memory_format=torch.channels_last)
    if cfg.MODEL.FOLD_FROZEN_NORMS:
        fold_frozen_norms(model)
    if cfg.MODEL.BACKBONE.CHECKPOINT_ACTIVATIONS:
        checkpoint_activations(model.backbone)


def compile_backbones(cfg: CfgNode, *models: nn.Module) -> None:
    """Compile the backbones where MODEL.COMPILE asks for it, in place.

    That is for models that are not copied any more: a copy of a compiled model is not compiled.
    """
    if cfg.MODEL.COMPILE:
        for model in models:
            # Sizes of images change from step to step.
            model.backbone.compile(backend=cfg.MODEL.COMPILE, dynamic=True)
