"""HTC on labeled images: mmdetection's stages, sampling and losses, computed box by box."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torchvision import ops

from htc import (
    CASCADE,
    CASCADE_MASK,
    MASK_SIDE,
    NUM_SEMANTIC,
    NUM_STAGES,
    SEMANTIC,
    STAGE_WEIGHTS,
    htc_config,
    htc_model,
    reference,
    with_semantics,
)
from masks import ellipses, labeled_view_with_masks
from rois import EXHAUSTIVE, SIZE, features_of, proposals_near
from soft_teacher.modeling.htc_sampling import label_and_sample
from tiny import NUM_CLASSES, random_boxes

CASES = {
    "htc": {},
    "htc, semantic": SEMANTIC,
    "interleaved, no flow": {"MODEL.ROI_HTC.MASK_INFO_FLOW": False},
    "flow, not interleaved": {"MODEL.ROI_HTC.INTERLEAVED": False},
    "cascade mask": CASCADE_MASK,
    "cascade": CASCADE,
    "cascade, semantic": {**CASCADE, **SEMANTIC},
}


def ground_truth(seed: int, num: int) -> Instances:
    boxes = random_boxes(seed, num, SIZE)
    return Instances(
        SIZE,
        gt_boxes=Boxes(boxes),
        gt_classes=torch.arange(num) % NUM_CLASSES,
        gt_masks=ellipses(boxes, SIZE),
    )


def expected_losses(ref, proposals, targets, cfg) -> dict[str, torch.Tensor]:
    """All losses of the stages, from every box that could be sampled."""
    entering = [x.proposal_boxes.tensor for x in proposals]
    losses = {}
    for stage in range(NUM_STAGES):
        rows, masks = [], []
        for image, target in enumerate(targets):
            boxes, classes = target.gt_boxes.tensor, target.gt_classes
            found = ref.run_stage(stage, image, entering[image], boxes, classes)
            entering[image] = ref.leave_stage(stage, found, len(boxes), SIZE)
            rows += found
            rois = ref.mask_rois(
                stage, found, entering[image], boxes, classes, cfg.MODEL.ROI_HTC.INTERLEAVED
            )
            masks += [(image, *x) for x in rois]
        weight = STAGE_WEIGHTS[stage]
        cls, reg = box_losses(ref, stage, rows, targets)
        losses[f"loss_cls_stage{stage}"] = weight * cls
        losses[f"loss_box_reg_stage{stage}"] = weight * reg
        if cfg.MODEL.MASK_ON:
            losses[f"loss_mask_stage{stage}"] = weight * mask_loss(ref, stage, masks, targets)
    return losses


def box_losses(ref, stage, rows, targets):
    cls = sum(-row.logits.log_softmax(dim=0)[row.label] for row in rows) / len(rows)
    reg, num = torch.zeros(()), 0
    for row in rows:
        if row.target is not None:
            target = targets[row.image].gt_boxes.tensor[row.target]
            error = (row.delta - ref.encode(stage, row.box, target)).abs()
            reg = reg + torch.where(error < 1, error**2 / 2, error - 0.5).sum()
            num += 1
    assert num > len(targets), "Too few foreground RoIs to tell right from wrong."
    return cls, reg / len(rows)


def mask_loss(ref, stage, rois, targets):
    """Mean over RoIs and cells; a cell's target is the bitmap's mean in it, cut at a half."""
    total, side = torch.zeros(()), 2 * MASK_SIDE
    for image, box, label, target in rois:
        logits = ref.mask_stage(stage, image, box[None], MASK_SIDE)[0, label]
        bitmap = targets[image].gt_masks.tensor[target][None, None].float()
        wanted = ops.roi_align(bitmap, [box[None]], side, 1.0, 0, aligned=True)[0, 0] >= 0.5
        total = total + F.binary_cross_entropy_with_logits(logits, wanted.float(), reduction="sum")
    assert len(rois) > len(targets)
    return total / (len(rois) * side**2)


def make(case: str):
    cfg = htc_config(**EXHAUSTIVE, **CASES[case])
    model = htc_model(cfg=cfg)
    targets = [ground_truth(10, 4), ground_truth(11, 3)]
    proposals = [proposals_near(x.gt_boxes.tensor, i, 15) for i, x in enumerate(targets)]
    with torch.no_grad():
        features = features_of(model, 2)
    return cfg, model, targets, proposals, {k: v.requires_grad_() for k, v in features.items()}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_a_computation_box_by_box(case):
    cfg, model, targets, proposals, features = make(case)
    heads = model.roi_heads
    maps = dict(features)
    with EventStorage():
        heads._add_embedding(maps)
        found = heads._labeled_losses(maps, proposals, targets)
    expected = expected_losses(reference(model, features), proposals, targets, cfg)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert float(value.detach()) > 0
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    # Gradients into features are not scaled, and flow from later mask heads into earlier ones.
    leaves = {**features, **dict(heads.named_parameters())}
    wanted = gradients(expected, leaves)
    for name, gradient in gradients(found, leaves).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=2e-3, atol=1e-5, msg=name)


def gradients(losses, leaves):
    values = torch.autograd.grad(
        sum(losses.values()), list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, values, strict=True))


@pytest.mark.parametrize("case", ["htc", "interleaved, no flow"])
def test_the_last_mask_loss_teaches_the_earlier_heads_only_through_the_flow(case):
    _, model, targets, proposals, features = make(case)
    with EventStorage():
        losses = model.roi_heads._labeled_losses(features, proposals, targets)
    losses["loss_mask_stage2"].backward()
    for k in range(NUM_STAGES):
        head = model.roi_heads.mask_head[k]
        learns = case == "htc" or k == 2
        for name, parameter in head.named_parameters():
            own = name.startswith(("deconv", "predictor"))
            if learns and (k == 2 or not own):
                assert parameter.grad.abs().max() > 0, (k, name)
            else:
                assert parameter.grad is None, (k, name)


def test_the_cases_above_tell_apart_what_is_interleaved_and_what_is_not():
    """Masks learn from other boxes; all else is the same."""
    found = {}
    for case in ("htc", "flow, not interleaved"):
        _, model, targets, proposals, features = make(case)
        with EventStorage():
            found[case] = model.roi_heads._labeled_losses(features, proposals, targets)
    for name, value in found["htc"].items():
        other = found["flow, not interleaved"][name]
        assert torch.allclose(value, other, rtol=1e-4) == ("mask" not in name), name


# --- sampling


def draw(boxes, targets, threshold=0.6, size=16, fraction=0.25, append=True) -> Instances:
    def sample(matched, labels, classes):
        classes = classes[matched] if len(classes) else torch.zeros_like(matched)
        classes = torch.where(labels == 1, classes, NUM_CLASSES)
        rows = torch.cat(subsample_labels(classes, size, fraction, NUM_CLASSES))
        return rows, classes[rows]

    return label_and_sample(boxes, targets, Matcher([threshold], [0, 1]), sample, append)


def test_ground_truth_joins_the_boxes_of_a_stage_and_is_marked():
    targets = ground_truth(1, 3)
    far = Boxes(torch.tensor([[70.0, 50, 79, 60]]).repeat(30, 1))
    rois = draw(far, targets)
    assert len(rois) == 16 and int(rois.is_target.sum()) == 3
    chosen = rois[rois.is_target]
    order = chosen.gt_classes.argsort()
    assert torch.equal(chosen.proposal_boxes.tensor[order], targets.gt_boxes.tensor)
    assert torch.equal(chosen.gt_boxes.tensor[order], targets.gt_boxes.tensor)
    assert torch.equal(chosen.gt_masks.tensor[order], targets.gt_masks.tensor)
    assert (rois.gt_classes[~rois.is_target] == NUM_CLASSES).all()
    assert not draw(far, targets, append=False).is_target.any()


def test_a_stage_takes_as_many_boxes_as_the_config_says_by_its_own_threshold():
    targets = ground_truth(1, 2)
    x0, y0, x1, y1 = targets.gt_boxes.tensor[0].tolist()
    # IoU 0.65.
    near = Boxes(torch.tensor([[x0, y0, x0 + 0.65 * (x1 - x0), y1]]).repeat(40, 1))
    assert int((draw(near, targets, 0.6).gt_classes < NUM_CLASSES).sum()) == 4
    by_higher = draw(near, targets, 0.7)
    assert len(by_higher) == 16
    assert int((by_higher.gt_classes < NUM_CLASSES).sum()) == int(by_higher.is_target.sum()) == 2


def test_an_image_without_objects_has_background_alone():
    rois = draw(Boxes(random_boxes(0, 9, SIZE)), ground_truth(1, 0))
    assert len(rois) == 9 and (rois.gt_classes == NUM_CLASSES).all()
    assert not rois.is_target.any() and not rois.has("gt_boxes")


# --- whole steps


def labeled(seed: int, num_boxes: int = 3, semantic: bool = False) -> dict:
    view = labeled_view_with_masks(seed, num_boxes)
    return with_semantics(view, seed) if semantic else view


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("num_boxes", [3, 0])
def test_one_backward_reaches_every_parameter_with_and_without_objects(case, num_boxes):
    keys = CASES[case]
    model = htc_model(**keys)
    view = labeled(3, num_boxes, semantic=SEMANTIC.items() <= keys.items())
    with EventStorage():
        losses = model([view])
    assert all(torch.isfinite(x) for x in losses.values())
    sum(losses.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []


@pytest.mark.parametrize("proposals", [0, 5])
def test_boxes_that_leave_the_image_leave_stages_with_ground_truth_alone(proposals):
    model = htc_model()
    with torch.no_grad():
        model.roi_heads.box_predictor[0].bbox_pred.bias[0] = 1000.0
    given = Instances(SIZE, proposal_boxes=Boxes(random_boxes(2, proposals, SIZE)))
    targets, features = ground_truth(4, 2), features_of(model, 1)
    with EventStorage():
        losses = model.roi_heads._labeled_losses(features, [given], [targets])
    # In later stages the only RoIs are the two objects themselves.
    ref = reference(model, features)
    rows = ref.run_stage(1, 0, torch.zeros(0, 4), targets.gt_boxes.tensor, targets.gt_classes)
    wanted = sum(-r.logits.log_softmax(0)[r.label] for r in rows) / 2
    torch.testing.assert_close(losses["loss_cls_stage1"], 0.5 * wanted, rtol=1e-4, atol=1e-6)
    assert all(torch.isfinite(x) for x in losses.values())


# --- the semantic branch


def test_the_semantic_loss_counts_all_pixels_padding_and_unknown_ones_too():
    model = htc_model(**SEMANTIC)
    views = [labeled(1, semantic=True), labeled(2, semantic=True)]
    # Padded to 96 x 96, by 32 pixels below and 16 on the right.
    with EventStorage():
        found = model(views)["loss_semantic"]
    features = features_like(model, views)
    logits = reference(model, features).semantic_logits()
    assert logits.shape == (2, NUM_SEMANTIC, 8, 12)
    total, labeled_cells = torch.zeros(()), 0
    for image, view in enumerate(views):
        for i in range(8):
            for j in range(10):
                label = int(view["sem_seg"][8 * i, 8 * j])
                if label != 255:
                    total = total - logits[image, :, i, j].log_softmax(dim=0)[label]
                    labeled_cells += 1
    assert 50 < labeled_cells < 150
    torch.testing.assert_close(found, 0.2 * total / (2 * 8 * 12), rtol=1e-4, atol=1e-6)


def features_like(model, views):
    return model.backbone(model.preprocess_image(views).tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_map_without_any_label_gives_zero_and_zero_gradients(dtype):
    head = htc_model(**SEMANTIC).roi_heads.semantic_head
    maps = {
        name: torch.randn(1, 32, 16 // 2**i, 16 // 2**i)
        for i, name in enumerate(("p2", "p3", "p4", "p5", "p6"))
    }
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = head.loss(head(maps), torch.full((1, 64, 64), 255, dtype=torch.uint8))
    loss.backward()
    assert float(loss.detach()) == 0 and loss.dtype == torch.float32
    assert all(x.grad.eq(0).all() for x in head.conv_logits.parameters())
    assert all(x.grad.eq(0).all() for x in head.convs.parameters())


def test_the_semantic_branch_without_maps_is_refused():
    model = htc_model(**SEMANTIC)
    with EventStorage(), pytest.raises(ValueError, match=r"DATASETS\.SEMANTIC_ROOT"):
        model([labeled(1)])


@pytest.mark.parametrize(
    ("key", "value", "names"),
    [
        ("MODEL.ROI_HTC.SCORE_AVERAGE", "median", "MODEL.ROI_HTC.SCORE_AVERAGE"),
        ("MODEL.ROI_HTC.STAGE_LOSS_WEIGHTS", (1.0, 0.5), "MODEL.ROI_HTC.STAGE_LOSS_WEIGHTS"),
        ("MODEL.ROI_HTC.STAGE_LOSS_WEIGHTS", (1.0, -1.0, 0.5), "MODEL.ROI_HTC.STAGE_LOSS_WEIGHTS"),
        ("MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead", "MODEL.ROI_MASK_HEAD.NAME"),
        ("MODEL.KEYPOINT_ON", True, "MODEL.KEYPOINT_ON"),
        ("MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False, "CLS_AGNOSTIC_BBOX_REG"),
        ("MODEL.ROI_HTC.SEMANTIC_NUM_CLASSES", 256, "MODEL.ROI_HTC.SEMANTIC_NUM_CLASSES"),
    ],
)
def test_a_bad_value_is_an_error_that_names_its_key(key, value, names):
    cfg = htc_config(**SEMANTIC)
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=names):
        build_model(cfg)


def test_a_pyramid_without_stride_8_has_no_semantic_branch():
    cfg = htc_config(
        **SEMANTIC,
        MODEL__FPN__IN_FEATURES=["res4", "res5"],
        MODEL__ROI_HEADS__IN_FEATURES=["p4", "p5"],
        MODEL__RPN__IN_FEATURES=["p4", "p5", "p6"],
        MODEL__ANCHOR_GENERATOR__SIZES=[[32], [64], [128]],
    )
    with pytest.raises(ValueError, match=r"SEMANTIC_ON needs .* strides \[16, 32, 64\]"):
        build_model(cfg)
