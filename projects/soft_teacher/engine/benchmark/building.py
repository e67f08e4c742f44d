"""Models and batches for measuring: the same weights and the same images for all."""

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from soft_teacher.config import head_section, num_classes
from soft_teacher.engine.benchmark.contenders import (
    InferenceContender,
    SoftTeacherContender,
    SupervisedContender,
)
from soft_teacher.engine.benchmark.phase_clock import PhaseClock
from soft_teacher.engine.benchmark.synthetic import (
    BatchShape,
    SyntheticBatch,
    settle_frozen_norms,
)
from soft_teacher.engine.execution import settle_execution
from soft_teacher.engine.export import plain_config


def build_soft_teacher(
    cfg: CfgNode, shape: BatchShape
) -> tuple[SoftTeacherContender, SyntheticBatch]:
    """Soft Teacher's step, and the batch that it works on.

    Args:
        cfg: the config; weights are random whatever it says, and drawn from SEED.
        shape: what a step works on.
    """
    cfg = benchmark_config(cfg)
    student, batch = _build_student(cfg, shape)
    settle_execution(cfg, student)
    return SoftTeacherContender(cfg, student, batch, PhaseClock(student.device)), batch


def build_stock_contenders(
    soft_teacher: SoftTeacherContender, batch: SyntheticBatch, as_is: bool = False
) -> tuple[SupervisedContender, InferenceContender]:
    """Stock Detectron2's training and inference, on the same batch, device and clock.

    Args:
        soft_teacher: from :func:`build_soft_teacher`, as is `batch`.
        batch: images and boxes.
        as_is: as Detectron2 comes, see :func:`without_options`.
    """
    cfg, clock = soft_teacher.cfg, soft_teacher.clock
    cfg = without_options(cfg) if as_is else cfg
    plain = _stock_config(cfg)
    state = soft_teacher.student.state_dict()
    return (
        SupervisedContender(cfg, plain, state, batch, clock),
        InferenceContender(cfg, plain, state, batch, clock),
    )


def build_supervised(cfg: CfgNode, shape: BatchShape) -> tuple[SupervisedContender, SyntheticBatch]:
    """Stock Detectron2's supervised step alone, and its batch; see :func:`build_soft_teacher`."""
    cfg = benchmark_config(cfg)
    student, batch = _build_student(cfg, shape)
    clock = PhaseClock(student.device)
    return SupervisedContender(cfg, _stock_config(cfg), student.state_dict(), batch, clock), batch


def without_options(cfg: CfgNode) -> CfgNode:
    """The config of Detectron2 as it comes: float32, nothing that makes it faster or smaller."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.AMP.ENABLED = cfg.SOFT_TEACHER.AMP_TEACHER = False
    cfg.MODEL.CHANNELS_LAST = cfg.MODEL.FOLD_FROZEN_NORMS = False
    cfg.MODEL.COMPILE = ""
    cfg.MODEL.BACKBONE.CHECKPOINT_ACTIVATIONS = False
    return cfg


def _build_student(cfg: CfgNode, shape: BatchShape) -> tuple[nn.Module, SyntheticBatch]:
    torch.manual_seed(max(cfg.SEED, 0))
    student = build_model(cfg)
    batch = SyntheticBatch.draw(shape, num_classes(cfg))
    settle_frozen_norms(student, batch.weak[:1])
    return student, batch


def _stock_config(cfg: CfgNode) -> CfgNode:
    plain = plain_config(cfg)
    plain.MODEL.DEVICE = cfg.MODEL.DEVICE
    # Detectron2 builds its FCOS from no config; ours, which is the same in supervised training,
    # reads these keys.
    plain.SOFT_TEACHER = cfg.SOFT_TEACHER.clone()
    return plain


def benchmark_config(cfg: CfgNode) -> CfgNode:
    """The config with which each step does all work, and each the same.

    No weights are read. The learning rate is zero, which costs as much as any other: random
    weights would diverge, and the work would depend on the step. All pseudo boxes teach
    regression.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.TIMM.WEIGHTS = cfg.MODEL.SWIN.WEIGHTS = ""
    cfg.SOLVER.BASE_LR = 0.0
    cfg.SOFT_TEACHER.PSEUDO_LABELS.REG_VARIANCE = float("inf")
    if head_section(cfg) != "ROI_HEADS":
        # A one-stage teacher predicts nothing around a made-up box: its score is to decide.
        cfg.SOFT_TEACHER.JITTER.ENABLED = False
    return cfg
