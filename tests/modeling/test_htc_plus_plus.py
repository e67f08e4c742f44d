"""All parts of HTC++ together, small: it learns from both kinds of images and finds objects."""

import torch
from detectron2.utils.events import EventStorage
from torch import nn

from cascades import CASCADE
from masks import MASK_HEAD, SIZE, confident_with_masks, labeled_view_with_masks
from soft_teacher.engine.ema import build_teacher
from soft_teacher.engine.optimizer import build_optimizer
from soft_teacher.engine.tta import RCNNWithTTA
from tiny import plain_view, tiny_config, tiny_model

HTC_PLUS_PLUS = {
    **CASCADE,
    **MASK_HEAD,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 32,
    "MODEL.ROI_HEADS.NAME": "SoftTeacherHTCROIHeads",
    "MODEL.ROI_HEADS.SOFT_NMS.ENABLED": True,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.001,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": 4,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": 32,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.NORM": "GN",
    "MODEL.BACKBONE.NAME": "build_swin_fpn_backbone",
    "MODEL.SWIN.EMBED_DIM": 8,
    "MODEL.SWIN.DEPTHS": (2, 2, 2, 2),
    "MODEL.SWIN.NUM_HEADS": (1, 2, 2, 4),
    "MODEL.SWIN.WINDOW_SIZE": 4,
    "MODEL.SWIN.DROP_PATH_RATE": 0.0,
    "MODEL.SWIN.USE_CHECKPOINT": True,
    "MODEL.SWIN.GLOBAL_ATTENTION.ENABLED": True,
    "MODEL.SWIN.GLOBAL_ATTENTION.DROP_PATH_RATE": 0.0,
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.BASE_LR": 1e-3,
    "TEST.AUG.MIN_SIZES": (48, 64),
}


def all_losses(student: nn.Module, teacher: nn.Module) -> dict[str, torch.Tensor]:
    with EventStorage():
        views = [plain_view(1, SIZE)]
        return student([labeled_view_with_masks(3)], views, confident_with_masks(teacher, views))


def test_one_step_reaches_every_parameter_and_lowers_both_kinds_of_losses():
    student = tiny_model(**HTC_PLUS_PLUS)
    teacher = build_teacher(student)
    optimizer = build_optimizer(tiny_config(**HTC_PLUS_PLUS), student)
    sums = []
    for step in range(6):
        torch.manual_seed(0)  # the same samples of RoIs in each step
        losses = all_losses(student, teacher)
        unlabeled = sum(x for name, x in losses.items() if name.endswith("_unsup"))
        labeled = sum(x for name, x in losses.items() if not name.endswith("_unsup"))
        sums.append((float(labeled.detach()), float(unlabeled.detach())))
        optimizer.zero_grad()
        (labeled + unlabeled).backward()
        if step == 0:
            parameters = [(n, p) for n, p in student.named_parameters() if p.requires_grad]
            assert [n for n, p in parameters if p.grad is None or not p.grad.isfinite().all()] == []
            layer = [p.grad for n, p in parameters if ".global_attention." in n]
            assert layer and all(x.abs().sum() > 0 for x in layer)
        optimizer.step()
    assert {f"loss_{kind}_stage2_unsup" for kind in ("cls", "box_reg", "mask")} <= losses.keys()
    for first, last in zip(sums[0], sums[-1], strict=True):
        assert last < first


def test_its_teacher_is_evaluated_at_several_scales_with_masks():
    teacher = build_teacher(tiny_model(**HTC_PLUS_PLUS))
    with torch.no_grad():
        cfg = tiny_config(**HTC_PLUS_PLUS)
        found = RCNNWithTTA(cfg, teacher)([plain_view(1, SIZE)])[0]["instances"]
    assert 0 < len(found) <= 100 and found.pred_masks.shape == (len(found), *SIZE)
    assert bool((found.scores[:-1] >= found.scores[1:]).all())
