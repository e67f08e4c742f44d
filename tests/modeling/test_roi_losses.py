"""The losses of a RoI head on unlabeled images, against those of the official code."""

from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import FastRCNNOutputLayers

from oracle import load_oracle
from soft_teacher import load_config
from soft_teacher.modeling.roi_losses import RoILosses, unlabeled_roi_losses
from soft_teacher.modeling.roi_sampling import UnlabeledSample

RECIPE = Path(__file__).parents[2] / "configs" / "coco" / "soft_teacher_R_50_FPN_10pct.yaml"
NUM_IMAGES = 2
NUM_CLASSES = 80
CASES = ["basic", "nopos"]


def recipe_predictor() -> FastRCNNOutputLayers:
    return FastRCNNOutputLayers(load_config(str(RECIPE)), ShapeSpec(channels=1))


def samples_of(case: dict) -> list[UnlabeledSample]:
    """RoIs of two images; the case lists the ground truth of foreground RoIs alone, in order."""
    is_foreground = case["labels"] < NUM_CLASSES
    image_of_gt = case["image_index"][is_foreground]
    samples = []
    for i in range(NUM_IMAGES):
        rows = case["image_index"] == i
        classes = case["labels"][rows]
        samples.append(
            UnlabeledSample(
                boxes=case["priors"][rows],
                classes=classes,
                reg_rows=is_foreground[rows].nonzero().squeeze(1),
                reg_classes=classes[classes < NUM_CLASSES],
                reg_boxes=case["gt_boxes"][image_of_gt == i],
                reg_candidates=torch.ones_like(classes, dtype=torch.bool),
            )
        )
    return samples


def losses_of(case: dict, deltas: torch.Tensor, reg_normalizer: str) -> RoILosses:
    return unlabeled_roi_losses(
        torch.zeros(len(deltas), NUM_CLASSES + 1),
        deltas,
        samples_of(case),
        {},
        recipe_predictor(),
        num_classes=NUM_CLASSES,
        reliability="none",
        cls_normalizer="joint",
        reg_normalizer=reg_normalizer,
    )


@pytest.mark.parametrize("name", CASES)
def test_box_regression_and_its_gradient_are_those_of_the_official_code(name):
    case = load_oracle(f"e_reg_{name}")
    deltas = case["bbox_pred"].requires_grad_()
    loss = losses_of(case, deltas, "sampled").losses["loss_box_reg"]
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(case["mmdet_loss_bbox"]), rel=1e-5)
    torch.testing.assert_close(deltas.grad, case["mmdet_grad_bbox_pred"], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_box_regression_by_the_paper_is_that_of_the_reference(name):
    case = load_oracle(f"e_reg_{name}")
    loss = losses_of(case, case["bbox_pred"], "foreground").losses["loss_box_reg"]
    assert float(loss) == pytest.approx(float(case["paper_loss_reg"]), rel=1e-5)


def test_the_recipe_encodes_boxes_as_the_official_code():
    case = load_oracle("e_reg_basic")
    weights = recipe_predictor().box2box_transform.weights
    assert weights == pytest.approx((1 / case["target_stds"]).tolist())
