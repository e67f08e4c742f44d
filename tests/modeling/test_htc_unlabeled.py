"""HTC on unlabeled images: two sets of pseudo boxes, re-sampled and judged in every stage."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from cascades import StageJudge
from htc import (
    CASCADE,
    CASCADE_MASK,
    MASK_SIDE,
    NUM_STAGES,
    SEMANTIC,
    STAGE_WEIGHTS,
    htc_config,
    htc_model,
    reference,
    with_semantics,
)
from masks import confident_with_masks, labeled_view_with_masks, with_masks
from rois import CLS_ROWS, EXHAUSTIVE, REG_ROWS, SIZE, features_of, guidance_for, proposals_near
from soft_teacher.engine.ema import build_teacher
from soft_teacher.modeling import roi_heads_htc
from soft_teacher.modeling.guidance import Guidance, PseudoLabelRules
from soft_teacher.modeling.htc_sampling import Entering, entering_next_stage
from soft_teacher.modeling.roi_sampling import UnlabeledSample
from tiny import NUM_CLASSES, detections, plain_view, random_boxes

VIEWS = [plain_view(0, SIZE), plain_view(1, SIZE)]
TASKS = ("cls", "box_reg", "mask")
CASES = {
    "htc": {},
    "htc, semantic": SEMANTIC,
    "ensemble": {"SOFT_TEACHER.CASCADE.JUDGE": "ensemble"},
    "cascade mask": CASCADE_MASK,
    "cascade": CASCADE,
}


def names(keys, suffix: str = "") -> list[str]:
    tasks = TASKS[:2] if keys.get("MODEL.MASK_ON") is False else TASKS
    return [f"loss_{x}_stage{k}{suffix}" for k in range(NUM_STAGES) for x in tasks]


def make(case: str, **sampling):
    """Two images; boxes that teach both losses, one of them, or none."""
    cfg = htc_config(**sampling, **CASES[case])
    model = htc_model(cfg=cfg)
    boxes = [random_boxes(10, 4, SIZE), random_boxes(11, 3, SIZE)]
    # One that teaches regression alone lies in one that teaches classification alone.
    boxes[1][1] = boxes[1][0] + torch.tensor([0.3, 0.3, -0.3, -0.3])
    scores = [[0.95, 0.95, 0.7, 0.6], [0.99, 0.6, 0.6]]
    variances = [[0.01, 0.5, 0.01, 0.01], [0.5, 0.01, 0.5]]
    guidance = guidance_for(boxes, scores, variances, cfg)
    guidance.labels = [with_masks(x, seed=i) for i, x in enumerate(guidance.labels)]
    guidance._judge = StageJudge()
    proposals = [proposals_near(b, i, 20) for i, b in enumerate(boxes)]
    return cfg, model, boxes, guidance, proposals


def cascade_by_hand(ref, proposals, boxes, chosen, interleaved: bool):
    """Of each stage all RoIs, and those of masks as (image, box, class, row of pseudo box)."""
    entering = [x.proposal_boxes.tensor for x in proposals]
    stages = []
    for stage in range(NUM_STAGES):
        rows, masks = [], []
        for image, kept in enumerate(chosen):
            targets, classes = boxes[image][kept], [r % NUM_CLASSES for r in kept]
            found = ref.run_stage(stage, image, entering[image], targets, classes)
            entering[image] = ref.leave_stage(stage, found, len(kept), SIZE)
            rows += found
            rois = ref.mask_rois(stage, found, entering[image], targets, classes, interleaved)
            masks += [(image, box, label, kept[target]) for box, label, target in rois]
        stages.append((rows, masks))
    return stages


def expected_losses(ref, proposals, boxes, guidance, cfg) -> dict[str, torch.Tensor]:
    """Two cascades, each over all proposals and the boxes of one set."""
    interleaved, judge = cfg.MODEL.ROI_HTC.INTERLEAVED, cfg.SOFT_TEACHER.CASCADE.JUDGE
    of_cls = cascade_by_hand(ref, proposals, boxes, CLS_ROWS, interleaved)
    of_reg = cascade_by_hand(ref, proposals, boxes, REG_ROWS, interleaved)
    losses = {}
    for stage, weight in enumerate(STAGE_WEIGHTS):
        (rows, masks), (reg_rows, _) = of_cls[stage], of_reg[stage]
        asked = stage if judge == "stage" else None
        losses[f"loss_cls_stage{stage}"] = weight * soft_cross_entropy(rows, asked)
        reg = regression(ref, stage, reg_rows, boxes) / len(rows)
        losses[f"loss_box_reg_stage{stage}"] = weight * reg
        if cfg.MODEL.MASK_ON:
            losses[f"loss_mask_stage{stage}"] = weight * mask_loss(ref, stage, masks, guidance)
    return losses


def soft_cross_entropy(rows, asked: int | None) -> torch.Tensor:
    """Eq. 4 and 5 as the official code has them, of one stage."""
    total, weights = torch.zeros(()), 0.0
    for row in rows:
        weight = 1.0
        if row.target is None:
            weight = float(StageJudge.background(row.box[None], asked)[0])
        total = total - weight * row.logits.log_softmax(dim=0)[row.label]
        weights += weight
    return total / weights


def regression(ref, stage, rows, boxes) -> torch.Tensor:
    """Smooth L1 of the foreground of G_reg, with beta 1."""
    total, num = torch.zeros(()), 0
    for row in rows:
        if row.target is not None:
            target = boxes[row.image][REG_ROWS[row.image][row.target]]
            error = (row.delta - ref.encode(stage, row.box, target)).abs()
            total = total + torch.where(error < 1, error**2 / 2, error - 0.5).sum()
            num += 1
    assert num > sum(map(len, REG_ROWS))
    return total


def mask_loss(ref, stage, rois, guidance) -> torch.Tensor:
    """Mean over RoIs and cells. Views are the originals, so a cell's center stays where it is."""
    total, side = torch.zeros(()), 2 * MASK_SIDE
    share = (torch.arange(side) + 0.5) / side
    for image, box, label, pseudo in rois:
        logits = ref.mask_stage(stage, image, box[None], MASK_SIDE)[0, label]
        own = guidance.labels[image].pred_boxes.tensor[pseudo]
        x, y = (
            ((box[i] + share * (box[i + 2] - box[i])) - own[i]) / (own[i + 2] - own[i]) * 2 - 1
            for i in (0, 1)
        )
        grid = torch.stack([x.expand(side, side), y[:, None].expand(side, side)], dim=-1)
        mask = guidance.labels[image].pred_masks[pseudo][None]
        wanted = F.grid_sample(mask, grid[None], align_corners=False)[0, 0] >= 0.5
        total = total + F.binary_cross_entropy_with_logits(logits, wanted.float(), reduction="sum")
    assert len(rois) > sum(map(len, CLS_ROWS))
    return total / (len(rois) * side**2)


@pytest.mark.parametrize("case", CASES)
def test_one_pass_equals_a_cascade_by_hand_for_each_set_of_pseudo_boxes(case):
    cfg, model, boxes, guidance, proposals = make(case, **EXHAUSTIVE)
    heads = model.roi_heads
    with torch.no_grad():
        features = {k: v.clone() for k, v in features_of(model, 2).items()}
    features = {k: v.requires_grad_() for k, v in features.items()}
    in_view = guidance.seen_from(VIEWS)
    with EventStorage():
        found = heads.unlabeled_losses(dict(features), proposals, in_view)
    expected = expected_losses(reference(model, features), proposals, boxes, guidance, cfg)
    assert list(found) == names(CASES[case]) == list(in_view.normalizers)
    for name, value in expected.items():
        assert float(value.detach()) > 0
        torch.testing.assert_close(found[name], value, rtol=2e-4, atol=1e-6, msg=name)
    leaves = [*features.values(), *heads.parameters()]
    all_gradients = [
        torch.autograd.grad(sum(x.values()), leaves, allow_unused=True, materialize_grads=True)
        for x in (found, expected)
    ]
    for gradient, wanted in zip(*all_gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(("case", "stages"), [("htc", [0, 1, 2]), ("ensemble", [None] * 3)])
def test_jittered_boxes_are_judged_once_together_with_the_first_stage(case, stages):
    _, model, _, guidance, proposals = make(case)
    guidance._variance = None
    with EventStorage():
        model.roi_heads.unlabeled_losses(
            features_of(model, 2), proposals, guidance.seen_from(VIEWS)
        )
    assert guidance._judge.calls == list(zip(stages, [10 * 7, 0, 0], strict=True))


def test_what_is_known_of_each_stage_is_noted():
    _, model, _, guidance, proposals = make("htc")
    with EventStorage():
        model.roi_heads.unlabeled_losses(
            features_of(model, 2), proposals, guidance.seen_from(VIEWS)
        )
    weights = [float(guidance.statistics[f"background_weight_stage{k}"]) for k in range(NUM_STAGES)]
    # The judge scores a stage's boxes 0.2 higher than those of the stage before.
    assert 0.2 < weights[0] < weights[1] < weights[2] < 0.9
    agreement = [
        float(guidance.statistics[f"pseudo_mask_agreement_stage{k}"]) for k in range(NUM_STAGES)
    ]
    assert all(0 < x < 1 for x in agreement)
    assert float(guidance.statistics["pseudo_boxes_cls"]) == 1.5


def test_every_stage_samples_as_many_rois_as_the_config_says(monkeypatch):
    seen = []

    def watch(needs, boxes, classes, *rest):
        foreground = [int((x < NUM_CLASSES).sum()) for x in classes]
        seen.append(list(zip(map(len, boxes), foreground, strict=True)))
        return gather(needs, boxes, classes, *rest)

    gather = roi_heads_htc.gather_evidence
    monkeypatch.setattr(roi_heads_htc, "gather_evidence", watch)
    few = {"MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 12, "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.25}
    _, model, _, guidance, proposals = make("htc", **few)
    with EventStorage():
        model.roi_heads.unlabeled_losses(
            features_of(model, 2), proposals, guidance.seen_from(VIEWS)
        )
    assert len(seen) == NUM_STAGES
    for of_stage in seen:
        # Pseudo boxes join each stage, so there always are foreground RoIs.
        assert all(num == 12 and 1 <= num_foreground <= 3 for num, num_foreground in of_stage)


def test_a_stage_hands_on_neither_pseudo_boxes_nor_boxes_without_area():
    boxes = torch.tensor([[0.0, 0, 9, 9], [1, 1, 8, 8], [2, 2, 2, 7], [3, 3, 9, 7], [4, 4, 5, 5]])
    empty = torch.zeros(0, dtype=torch.int64)
    sample = UnlabeledSample(
        boxes=boxes + 1,
        classes=torch.tensor([0, 1, NUM_CLASSES]),
        reg_rows=empty,
        reg_classes=empty,
        reg_boxes=torch.zeros(0, 4),
        reg_candidates=torch.tensor([True, False, True, True, False]),
    )
    (found,) = entering_next_stage([sample], [Boxes(boxes)])
    assert torch.equal(found.boxes, boxes[[0, 3]])
    # The second was sampled for regression alone.
    assert found.for_cls.tolist() == [True, False]


def test_classification_does_not_sample_what_came_for_regression_alone():
    _, model, boxes, guidance, _ = make("htc", **EXHAUSTIVE)
    in_view = guidance.seen_from(VIEWS)
    given = [random_boxes(5, 6, SIZE), random_boxes(6, 2, SIZE)]
    entering = [Entering(x, torch.arange(len(x)) % 2 == 0) for x in given]
    heads = model.roi_heads
    pools, matches = heads._sample_for_cls(1, entering, in_view)
    for image, (pool, match) in enumerate(zip(pools, matches, strict=True)):
        wanted = torch.cat([given[image][::2], boxes[image][CLS_ROWS[image]]])
        assert sorted(pool[match.rows].tolist()) == sorted(wanted.tolist())
    samples = heads._add_regression(1, entering, pools, matches, in_view)
    for image, sample in enumerate(samples):
        proposals = {tuple(x) for x in given[image].tolist()}
        for box, is_handed_on in zip(sample.boxes.tolist(), sample.reg_candidates, strict=True):
            assert bool(is_handed_on) == (tuple(box) in proposals)


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("case", ["htc", "htc, semantic", "cascade mask"])
def test_one_backward_reaches_every_parameter_of_every_stage(case, amp):
    student = htc_model(**CASES[case], **{"SOFT_TEACHER.PSEUDO_LABELS.REG_VARIANCE": 10.0})
    teacher = build_teacher(student)
    view = labeled_view_with_masks(3)
    if case == "htc, semantic":
        view = with_semantics(view)
    with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
        guidance = confident_with_masks(teacher, [plain_view(1, SIZE)])
        losses = student([view], [plain_view(1, SIZE)], guidance)
    unlabeled = {k: v for k, v in losses.items() if k.endswith("_unsup")}
    heads = names({}, "_unsup")
    assert unlabeled.keys() == {*heads, "loss_rpn_cls_unsup", "loss_rpn_loc_unsup"}
    assert list(guidance.normalizers) == heads
    assert all(v.dtype == torch.float32 and float(v.detach()) > 0 for v in unlabeled.values())
    assert ("loss_semantic" in losses) == (case == "htc, semantic")
    sum(unlabeled.values()).backward(retain_graph=True)
    missing = {n for n, p in student.named_parameters() if p.requires_grad and p.grad is None}
    # Unlabeled images have no maps of labels; the labeled ones of the same step do.
    logits = {f"roi_heads.semantic_head.conv_logits.{x}" for x in ("weight", "bias")}
    assert missing == (logits if case == "htc, semantic" else set())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in student.parameters() if p.requires_grad)
    assert all(p.grad is None for p in teacher.parameters())


def hopeless(case: str, model):
    """Pseudo boxes and proposals that leave some stage without boxes."""
    nothing = Instances(SIZE, proposal_boxes=Boxes(torch.zeros(0, 4)))
    boxes = random_boxes(10, 4, SIZE)
    if case == "no proposals":
        return detections([], []), nothing
    if case == "no pseudo boxes":
        return detections([], []), proposals_near(boxes, 0)
    assert case == "boxes leave the image"
    with torch.no_grad():
        model.roi_heads.box_predictor[0].bbox_pred.bias[0] = 1000.0
    return detections(boxes, [0.95] * 4), proposals_near(boxes, 0)


@pytest.mark.parametrize("case", ["no proposals", "no pseudo boxes", "boxes leave the image"])
@pytest.mark.parametrize("keys", [{}, SEMANTIC, CASCADE_MASK])
def test_stages_without_boxes_give_finite_connected_losses(case, keys):
    cfg = htc_config(**keys)
    model = htc_model(cfg=cfg)
    labels, proposals = hopeless(case, model)
    rules = PseudoLabelRules.from_config(cfg)
    guidance = Guidance([with_masks(labels)], [VIEWS[0]["matrix"]], StageJudge(), rules)
    with EventStorage():
        losses = model.roi_heads.unlabeled_losses(
            features_of(model, 1), [proposals], guidance.seen_from(VIEWS[:1])
        )
    sum(losses.values()).backward()
    found = {k: float(v.detach()) for k, v in losses.items()}
    assert all(0 <= v < 1e4 for v in found.values())
    # Pseudo boxes join later stages, which therefore learn even if nothing else is left.
    assert (max(found.values()) == 0) == (case == "no proposals")
    assert (found["loss_mask_stage2"] > 0) == (case == "boxes leave the image")
    own = [p for n, p in model.roi_heads.named_parameters() if "conv_logits" not in n]
    assert all(p.grad is not None for p in own)


@pytest.mark.parametrize("labeled", [False, True])
def test_boxes_that_are_not_finite_are_an_error_that_the_step_skips(labeled):
    _, model, _, guidance, proposals = make("htc")
    with torch.no_grad():
        model.roi_heads.box_predictor[1].bbox_pred.bias.fill_(float("inf"))
    with EventStorage(), pytest.raises(FloatingPointError, match="stage of the cascade"):
        if labeled:
            model([labeled_view_with_masks(1)])
        else:
            model.roi_heads.unlabeled_losses(
                features_of(model, 2), proposals, guidance.seen_from(VIEWS)
            )
