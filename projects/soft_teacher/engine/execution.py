"""How a model's arithmetic is carried out: the same results, up to rounding, faster or smaller."""

from contextlib import suppress

import torch
from detectron2.config import CfgNode
from torch import nn

from soft_teacher.modeling.activation_checkpointing import checkpoint_activations
from soft_teacher.modeling.folded_norms import fold_frozen_norms

DENSE_PARTS = ("backbone", "proposal_generator.rpn_head", "roi_heads.box_head", "head")
"""Names that Detectron2's detectors have for them, each a few of these."""


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


def compile_parts(cfg: CfgNode, *models: nn.Module) -> None:
    """Compile backbones and heads where MODEL.COMPILE asks for it, in place.

    That is for models that are not copied any more: a copy of a compiled model is not compiled.
    """
    if cfg.MODEL.COMPILE:
        from torch import _dynamo  # takes a second, which only this needs

        # It would split each part by DDP's buckets, as if it were the whole model.
        _dynamo.config.optimize_ddp = False
        for part in (part for model in models for part in dense_parts(model)):
            # Sizes of images and numbers of RoIs change from step to step.
            part.compile(backend=cfg.MODEL.COMPILE, dynamic=True)


def dense_parts(model: nn.Module) -> list[nn.Module]:
    """The parts of a detector that compute tensors from tensors, and hold nearly all arithmetic.

    What lies between them chooses boxes by their scores, which no graph can hold.
    """
    parts = []
    for name in DENSE_PARTS:
        with suppress(AttributeError):
            part = model.get_submodule(name)
            # A cascade has a head for each stage.
            parts += part if isinstance(part, nn.ModuleList) else [part]
    return parts
