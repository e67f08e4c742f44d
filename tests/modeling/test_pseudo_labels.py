"""Which detections teach what."""

import torch
from detectron2.structures import Boxes, Instances

from oracle import load_oracle
from soft_teacher.modeling.pseudo_labels import above_score, below_variance, carry_to_view, has_area


def test_thresholds_are_strict_at_the_boundary():
    case = load_oracle("g_thresholds")
    labels = Instances((10, 10), scores=case["scores"])
    kept = above_score(labels, float(case["thr_cls_rpn"])).nonzero().squeeze(1)
    assert torch.equal(kept, case["mmdet_kept_cls_rpn"])
    kept = above_score(labels, float(case["thr_initial"])).nonzero().squeeze(1)
    assert torch.equal(kept, case["mmdet_kept_initial"])
    kept = below_variance(case["reg_uncs"], float(case["thr_reg"])).nonzero().squeeze(1)
    assert torch.equal(kept, case["mmdet_kept_reg"])


def test_a_box_pushed_out_of_the_view_has_no_area():
    labels = Instances(
        (100, 100),
        pred_boxes=Boxes(torch.tensor([[10.0, 10, 20, 20], [80, 10, 95, 20]])),
        pred_classes=torch.tensor([3, 4]),
        scores=torch.tensor([0.9, 0.9]),
    )
    shift = torch.tensor([[1.0, 0, 30], [0, 1, 0], [0, 0, 1]])
    targets = carry_to_view(labels, shift, (100, 100), "corners")
    assert has_area(targets).tolist() == [True, False]
    assert targets.gt_boxes.tensor[0].tolist() == [40, 10, 50, 20]
    assert targets.gt_classes.tolist() == [3, 4]
