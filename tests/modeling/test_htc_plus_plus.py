"""All parts of HTC++ together, small: it learns from both kinds of images and finds objects."""

import torch
from detectron2.utils.events import EventStorage
from torch import nn

from htc import with_semantics
from htc_plus_plus import HTC_PLUS_PLUS
from masks import SIZE, confident_with_masks, labeled_view_with_masks
from soft_teacher.engine.ema import build_teacher
from soft_teacher.engine.optimizer import build_optimizer
from soft_teacher.engine.tta import RCNNWithTTA
from tiny import plain_view, tiny_config, tiny_model


def all_losses(student: nn.Module, teacher: nn.Module) -> dict[str, torch.Tensor]:
    with EventStorage():
        views = [plain_view(1, SIZE)]
        labeled = with_semantics(labeled_view_with_masks(3))
        return student([labeled], views, confident_with_masks(teacher, views))


def test_one_step_reaches_every_parameter_and_lowers_both_kinds_of_losses():
    student = tiny_model(**HTC_PLUS_PLUS)
    teacher = build_teacher(student)
    optimizer = build_optimizer(tiny_config(**HTC_PLUS_PLUS), student)
    sums = []
    for step in range(6):
        torch.manual_seed(0)  # the same samples of RoIs and the same dropped paths in each step
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
    assert float(losses["loss_semantic"].detach()) > 0
    assert "loss_semantic_unsup" not in losses
    for first, last in zip(sums[0], sums[-1], strict=True):
        assert last < first


def test_its_teacher_is_evaluated_at_several_scales_with_masks():
    teacher = build_teacher(tiny_model(**HTC_PLUS_PLUS))
    with torch.no_grad():
        cfg = tiny_config(**HTC_PLUS_PLUS)
        found = RCNNWithTTA(cfg, teacher)([plain_view(1, SIZE)])[0]["instances"]
    assert 0 < len(found) <= 100 and found.pred_masks.shape == (len(found), *SIZE)
    assert bool((found.scores[:-1] >= found.scores[1:]).all())
