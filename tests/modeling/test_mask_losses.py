"""The mask loss on unlabeled images against its formula, cell by cell in float64."""

import math

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_MASK_HEAD_REGISTRY, build_model
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_loss
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage

from masks import MASK_HEAD, ellipses, with_masks
from rois import EXHAUSTIVE, SIZE, FixedJudge, features_of, guidance_for, proposals_near
from soft_teacher.engine import global_normalizer
from soft_teacher.engine.global_normalizer import normalize_globally
from soft_teacher.modeling.guidance import Guidance, PseudoLabelRules
from soft_teacher.modeling.mask_losses import MaskRules, logits_of_classes, mask_loss
from soft_teacher.modeling.pseudo_masks import carry_masks
from tiny import NUM_CLASSES, detections, plain_view, random_boxes, tiny_config

# Turned by 20 degrees about the corner: a part of the strong view lies outside the weak image.
COS, SIN = math.cos(math.radians(20)), math.sin(math.radians(20))
TURN = np.array([[COS, -SIN, 0], [SIN, COS, 0], [0, 0, 1.0]])
# The first of each image lies in the corner that is turned out of it, or apart from the others.
BOXES = [
    [[2.0, 3, 30, 28], [45, 30, 75, 60], [20, 8, 50, 40], [5, 35, 30, 60]],
    [[30.0, 10, 70, 50], [5, 5, 25, 30], [10, 35, 40, 60]],
]
HARD = MaskRules("hard", 0.5, 1.0)


class Setting:
    """Two images with pseudo boxes that have masks; some teach classification, some do not."""

    def __init__(self, views, **keys):
        self.cfg = tiny_config(**EXHAUSTIVE, **MASK_HEAD, **keys)
        torch.manual_seed(0)
        self.model = build_model(self.cfg).train()
        torch.nn.init.normal_(self.model.roi_heads.mask_head.predictor.weight, std=0.5)
        self.boxes = [torch.tensor(x) for x in BOXES]
        scores = [[0.95, 0.92, 0.7, 0.6], [0.99, 0.6, 0.6]]
        variances = [[0.01, 0.5, 0.01, 0.01], [0.5, 0.01, 0.5]]
        self.guidance = guidance_for(self.boxes, scores, variances, self.cfg)
        for i, labels in enumerate(self.guidance.labels):
            with_masks(labels, seed=i)
        self.in_view = self.guidance.seen_from(views)
        self.targets = [x.gt_boxes.tensor for x in self.in_view.targets]
        self.proposals = [proposals_near(x, i) for i, x in enumerate(self.targets)]

    def losses(self):
        with EventStorage():
            self.features = features_of(self.model, 2)
            return self.model.roi_heads.unlabeled_losses(
                self.features, self.proposals, self.in_view
            )

    def foreground(self, image, rows):
        """RoIs of one image that overlap a pseudo box of `rows` by half, and the best of these."""
        pool = torch.cat([self.proposals[image].proposal_boxes.tensor, self.targets[image][rows]])
        overlap, best = pairwise_iou(Boxes(self.targets[image][rows]), Boxes(pool)).max(dim=0)
        return pool[overlap >= 0.5], torch.tensor(rows)[best[overlap >= 0.5]]


def read_by_hand(mask, box, x, y):
    """Bilinear value of a mask (m x m) at a point, 0 beyond its cells; plain floats."""
    side = len(mask)
    u = (x - box[0]) / (box[2] - box[0]) * side - 0.5
    v = (y - box[1]) / (box[3] - box[1]) * side - 0.5
    column, row = math.floor(u), math.floor(v)
    total = 0.0
    for i in (row, row + 1):
        for j in (column, column + 1):
            if 0 <= i < side and 0 <= j < side:
                total += (1 - abs(u - j)) * (1 - abs(v - i)) * mask[i][j]
    return total


def by_hand(setting, views, rows_of, rule):
    """The loss by its formula: sum over known cells / (F M^2), and the number of each."""
    heads = setting.model.roi_heads
    total, num_cells, num_unknown = 0.0, 0, 0
    for image, rows in enumerate(rows_of):
        rois, partners = setting.foreground(image, rows)
        labels = setting.guidance.labels[image]
        one = [setting.features[f][image : image + 1] for f in heads.mask_in_features]
        logits = heads.mask_head.layers(heads.mask_pooler(one, [Boxes(rois)])).double()
        back = np.linalg.inv(views[image]["matrix"])
        side = logits.shape[-1]
        for roi, partner, of_classes in zip(rois.double().tolist(), partners, logits, strict=True):
            of_class = of_classes[labels.pred_classes[partner]].tolist()
            mask = labels.pred_masks[partner, 0].double().tolist()
            box = labels.pred_boxes.tensor[partner].double().tolist()
            for i in range(side):
                for j in range(side):
                    x = roi[0] + (j + 0.5) / side * (roi[2] - roi[0])
                    y = roi[1] + (i + 0.5) / side * (roi[3] - roi[1])
                    x, y, _ = back @ [x, y, 1.0]
                    num_cells += 1
                    if not (0 <= x <= SIZE[1] and 0 <= y <= SIZE[0]):
                        num_unknown += 1
                        continue
                    target = rule(read_by_hand(mask, box, x, y))
                    z = of_class[i][j]
                    total += max(z, 0) - z * target + math.log1p(math.exp(-abs(z)))
    return total / num_cells, num_cells, num_unknown


@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        ({}, lambda p: float(p >= 0.5)),
        ({"SOFT_TEACHER.MASK.THRESHOLD": 0.35}, lambda p: float(p >= 0.35)),
        ({"SOFT_TEACHER.MASK.TARGET": "soft"}, lambda p: p),
    ],
)
def test_the_loss_is_its_formula_cell_by_cell(keys, rule):
    views = [plain_view(0, matrix=TURN), plain_view(1)]
    setting = Setting(views, **keys)
    found = setting.losses()["loss_mask"]
    expected, num_cells, num_unknown = by_hand(setting, views, [[0, 1], [0]], rule)
    assert float(found) == pytest.approx(expected, rel=1e-4)
    side = 8
    assert num_cells > 5 * side**2 and num_unknown > 10
    # What other processes must know is the number of foreground RoIs.
    assert float(setting.in_view.normalizers["loss_mask"]) == num_cells / side**2
    noted = setting.guidance.statistics
    assert float(noted["pseudo_mask_unknown"]) == pytest.approx(num_unknown / num_cells)
    assert 0 < float(noted["pseudo_mask_agreement"]) < 1


def test_a_pseudo_box_below_the_mask_score_teaches_classification_alone():
    views = [plain_view(0), plain_view(1)]
    keys = {"SOFT_TEACHER.MASK.SCORE": 0.93}
    setting, all_teach = Setting(views, **keys), Setting(views)
    found, with_all = setting.losses(), all_teach.losses()
    expected, _, _ = by_hand(setting, views, [[0], [0]], lambda p: float(p >= 0.5))
    # The other pseudo box is far away, so none of its RoIs overlaps the first one by half.
    assert pairwise_iou(*(Boxes(setting.targets[0][i : i + 1]) for i in (0, 1))) < 0.1
    assert float(found["loss_mask"]) == pytest.approx(expected, rel=1e-4)
    assert float(found["loss_mask"]) != pytest.approx(float(with_all["loss_mask"]), rel=1e-3)
    torch.testing.assert_close(found["loss_cls"], with_all["loss_cls"])


def test_the_loss_weight_multiplies():
    views = [plain_view(0), plain_view(1)]
    one, third = Setting(views), Setting(views, **{"SOFT_TEACHER.MASK.LOSS_WEIGHT": 1 / 3})
    torch.testing.assert_close(third.losses()["loss_mask"] * 3, one.losses()["loss_mask"])


def test_where_all_is_known_the_loss_is_detectron2s():
    """Ground truth as the teacher's masks, of the same grid: Detectron2's own loss."""
    boxes = random_boxes(3, 4, SIZE)
    classes = torch.tensor([0, 2, 1, 0])
    masks = ellipses(boxes, SIZE)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, NUM_CLASSES, 28, 28, generator=generator)
    sample = Instances(SIZE, proposal_boxes=Boxes(boxes), gt_classes=classes, gt_masks=masks)
    with EventStorage():
        expected = mask_rcnn_loss(logits, [sample])
    given = masks.crop_and_resize(boxes, 28).float()[:, None]
    probabilities, known = carry_masks(given, boxes, boxes, torch.eye(3), SIZE, 28)
    found = mask_loss(logits_of_classes(logits, classes), HARD.targets(probabilities), known)
    torch.testing.assert_close(found, expected)


def test_one_map_for_all_classes_is_the_one_that_learns():
    logits = torch.randn(4, 1, 8, 8)
    assert torch.equal(logits_of_classes(logits, torch.tensor([2, 0, 1, 1])), logits[:, 0])


def test_probabilities_are_cut_once_and_after_they_are_carried():
    """From a cell of 0.45 to one of 0.9 they pass 0.5 after a ninth of the way, not halfway."""
    mask = torch.tensor([[[[0.45, 0.9], [0.45, 0.9]]]])
    box = torch.tensor([[0.0, 0, 2, 2]])
    # 90 cells between the two cell centers at x = 0.5 and x = 1.5.
    between = torch.tensor([[0.5, 0.9, 1.5, 1.1]])
    probabilities, _ = carry_masks(mask, box, between, torch.eye(3), (2, 2), 90)
    assert int(HARD.targets(probabilities)[0, 45].sum()) == 80


def test_soft_targets_are_the_probabilities_themselves():
    probabilities = torch.rand(3, 8, 8)
    assert torch.equal(MaskRules("soft", 0.5, 1.0).targets(probabilities), probabilities)


def test_without_foreground_the_loss_is_zero_and_reaches_the_mask_head():
    cfg = tiny_config(**MASK_HEAD)
    model = build_model(cfg).train()
    nothing = with_masks(detections([], []))
    guidance = Guidance([nothing], [np.eye(3)], FixedJudge(), PseudoLabelRules.from_config(cfg))
    in_view = guidance.seen_from([plain_view(0)])
    with EventStorage():
        losses = model.roi_heads.unlabeled_losses(
            features_of(model, 1), [proposals_near(random_boxes(0, 2, SIZE), 1)], in_view
        )
    assert float(losses["loss_mask"]) == 0 and float(in_view.normalizers["loss_mask"]) == 0
    losses["loss_mask"].backward()
    assert all(p.grad is not None for p in model.roi_heads.mask_head.parameters())
    assert math.isnan(float(guidance.statistics["pseudo_mask_agreement"]))


def test_a_head_without_masks_loses_nothing_on_masks(setting):
    _, model, _, guidance, proposals = setting
    with EventStorage():
        losses = model.roi_heads.unlabeled_losses(
            features_of(model, 2), proposals, guidance.seen_from([plain_view(0), plain_view(1)])
        )
    assert set(losses) == {"loss_cls", "loss_box_reg"}


@pytest.mark.parametrize("boundary", [0, 1, 3, 7])
def test_the_mean_over_processes_is_the_loss_on_all_rois(boundary, monkeypatch):
    """Seven foreground RoIs, of which the first process has so many."""
    generator = torch.Generator().manual_seed(boundary)
    logits, targets = torch.randn(2, 7, 5, 5, generator=generator).double()
    targets = (targets > 0).double()
    known = torch.rand(7, 5, 5, generator=generator) < 0.8
    shares = []
    for rows in (slice(0, boundary), slice(boundary, 7)):
        loss = mask_loss(logits[rows], targets[rows], known[rows])
        shares.append(({"loss_mask": loss}, {"loss_mask": loss.new_full((), len(logits[rows]))}))
    monkeypatch.setattr(global_normalizer.comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(global_normalizer.dist, "all_reduce", lambda x: x.fill_(7.0))
    mean = sum(normalize_globally(*share)["loss_mask"] for share in shares) / 2
    assert float(mean) == pytest.approx(float(mask_loss(logits, targets, known)), rel=1e-12)


@ROI_MASK_HEAD_REGISTRY.register()
class UncommonMaskHead(torch.nn.Module):
    """A head that has no grid of logits."""

    def __init__(self, cfg, input_shape: ShapeSpec):
        super().__init__()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOFT_TEACHER.MASK.TARGET", "blurred"),
        ("SOFT_TEACHER.MASK.THRESHOLD", 1.0),
        ("MODEL.ROI_MASK_HEAD.NAME", "UncommonMaskHead"),
        ("SOFT_TEACHER.PSEUDO_LABELS.FILES", ("labels.json",)),
    ],
)
def test_a_bad_value_is_an_error_that_names_its_key(key, value):
    with pytest.raises(ValueError, match=key):
        build_model(tiny_config(**MASK_HEAD, **{key: value}))
