"""All losses on unlabeled images are those of a plain implementation, box by box.

From the teacher's detections to the four losses nothing is shared with the project but the weights,
the noise of the jitter and the last digit of the RPN's targets. Detectron2's own models detect,
propose and compute the RPN's losses.
Sampling takes every anchor and every RoI, so that nothing is left to chance. No test of a part sees
whether the parts fit together: which boxes go where, through which matrix, to which loss.
"""

import math

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage

from rois import EXHAUSTIVE
from soft_teacher.engine.ema import build_teacher
from soft_teacher.modeling import box_jitter
from soft_teacher.modeling.guidance import Guidance
from soft_teacher.modeling.pseudo_labels import select
from tiny import NUM_CLASSES, labeled_view, plain_view, tiny_config

HEIGHT, WIDTH = SIZE = (64, 80)
KEYS = {
    **EXHAUSTIVE,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 100000,
    "MODEL.RPN.POSITIVE_FRACTION": 1.0,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "SOFT_TEACHER.UNSUP_LOSS_WEIGHT": 2.5,
    "SOFT_TEACHER.PSEUDO_LABELS.MIN_SCORE": 0.4,
    "SOFT_TEACHER.PSEUDO_LABELS.RPN_SCORE": 0.5,
    "SOFT_TEACHER.PSEUDO_LABELS.CLS_SCORE": 0.6,
    "SOFT_TEACHER.PSEUDO_LABELS.REG_VARIANCE": 0.05,
}
RULES = {k.rpartition(".")[2]: v for k, v in KEYS.items()}
NUM_JITTER, JITTER_SCALE, MATCH_IOU = 10, 0.06, 0.5
# The weak views are the images themselves and their mirror image; the strong ones are turned,
# and sheared and shifted.
WEAK = [np.eye(3), np.array([[-1.0, 0, WIDTH], [0, 1, 0], [0, 0, 1]])]
COS, SIN = math.cos(0.3), math.sin(0.3)
STRONG = [
    np.array([[COS, -SIN, 14.0], [SIN, COS, -9], [0, 0, 1]]),
    np.array([[1.0, 0.2, -7], [0.1, 1, 4], [0, 0, 1]]),
]


def models() -> tuple:
    """A student, its teacher, and Detectron2's own detectors with the weights of both."""
    cfg = tiny_config(**KEYS)
    torch.manual_seed(3)
    student = build_model(cfg).train()
    for layer in (student.roi_heads.box_predictor.cls_score, student.proposal_generator.rpn_head):
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.3 if parameter.ndim < 4 else 0.02)
    torch.nn.init.normal_(student.roi_heads.box_predictor.bbox_pred.weight, std=0.1)
    teacher = build_teacher(student)
    # A teacher that is not the student, or exchanging the two would go unnoticed.
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(1.02)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME = "GeneralizedRCNN", "StandardROIHeads"
    stock = [build_model(cfg) for _ in range(2)]
    for plain, model in zip(stock, (student, teacher), strict=True):
        plain.load_state_dict(model.state_dict())
    return student, teacher, stock[0].train(), stock[1].eval()


def carried(box: list[float], matrix: np.ndarray) -> list[float]:
    """The box around the four corners after a map, clipped to the view."""
    x0, y0, x1, y1 = box
    corners = [matrix @ (x, y, 1.0) for x in (x0, x1) for y in (y0, y1)]
    xs = [min(max(c[0], 0.0), WIDTH) for c in corners]
    ys = [min(max(c[1], 0.0), HEIGHT) for c in corners]
    return [min(xs), min(ys), max(xs), max(ys)]


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    return common / (sum((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)) - common)


class Head:
    """What a detector's box head says of one box of one image."""

    def __init__(self, model: torch.nn.Module, view: dict):
        images = model.preprocess_image([view])
        self.features, self.heads = model.backbone(images.tensor), model.roi_heads

    def __call__(self, box: list[float]) -> tuple[list[float], torch.Tensor]:
        """Log probabilities of the classes and the background, and deltas (K, 4), in float64."""
        levels = [self.features[f] for f in self.heads.box_in_features]
        pooled = self.heads.box_pooler(levels, [Boxes(torch.tensor([box]))])
        logits, deltas = self.heads.box_predictor(self.heads.box_head(pooled))
        logits = logits[0].double().tolist()
        norm = math.log(sum(map(math.exp, logits)))
        return [x - norm for x in logits], deltas[0].double().view(NUM_CLASSES, 4)


def moved(box: list[float], deltas: list[float]) -> list[float]:
    """A box by its deltas (weights 10, 10, 5, 5), clipped to the view."""
    x0, y0, x1, y1 = box
    x = (x0 + x1) / 2 + deltas[0] / 10 * (x1 - x0)
    y = (y0 + y1) / 2 + deltas[1] / 10 * (y1 - y0)
    width, height = (x1 - x0) * math.exp(deltas[2] / 5), (y1 - y0) * math.exp(deltas[3] / 5)
    found = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    limits = (WIDTH, HEIGHT, WIDTH, HEIGHT)
    return [min(max(v, 0.0), limit) for v, limit in zip(found, limits, strict=True)]


def deltas_to(box: list[float], target: list[float]) -> list[float]:
    (w, h), (tw, th) = ((b[2] - b[0], b[3] - b[1]) for b in (box, target))
    shifts = ((target[i] + target[i + 2] - box[i] - box[i + 2]) / 2 for i in (0, 1))
    dx, dy = shifts
    return [10 * dx / w, 10 * dy / h, 5 * math.log(tw / w), 5 * math.log(th / h)]


def variance(box: list[float], label: int, noise: torch.Tensor, teacher: Head) -> float:
    """Deviation of the refined copies of a pseudo box, relative to their mean (official)."""
    sides = [max(box[2] - box[0], 1.0), max(box[3] - box[1], 1.0)] * 2
    refined = []
    for offsets in noise.tolist():
        copy = [b + n * JITTER_SCALE * s for b, n, s in zip(box, offsets, sides, strict=True)]
        refined.append(moved(copy, teacher(copy)[1][label].tolist()))
    means = [sum(x) / NUM_JITTER for x in zip(*refined, strict=True)]
    sides = [max(means[2] - means[0], 1.0), max(means[3] - means[1], 1.0)] * 2
    total = 0.0
    for k in range(4):
        squares = sum((x[k] - means[k]) ** 2 for x in refined)
        total += math.sqrt(squares / (NUM_JITTER - 1)) / sides[k] / 4
    return total


def best(box: list[float], targets: list[dict]) -> dict | None:
    """The target with the largest IoU, if that suffices for a match."""
    found = max(targets, key=lambda x: iou(box, x["strong"]), default=None)
    return found if found and iou(box, found["strong"]) >= MATCH_IOU else None


def pseudo_labels(detector, head: Head, view: dict, to_strong: np.ndarray, noise) -> list[dict]:
    """Pseudo boxes of an image, in both views, with all that decides what they teach."""
    (found,) = detector.inference([view], do_postprocess=False)
    chosen = found[found.scores > RULES["MIN_SCORE"]]
    labels = []
    for k in range(len(chosen)):
        box, label = chosen.pred_boxes.tensor[k].tolist(), int(chosen.pred_classes[k])
        labels.append(
            {
                "class": label,
                "score": float(chosen.scores[k]),
                "variance": variance(box, label, noise[:, k], head),
                "strong": carried(box, to_strong),
            }
        )
    return labels


def truths_for_rpn(labels: list[list[dict]], guidance: Guidance, strong: list[dict]) -> list:
    """Pseudo boxes that teach the RPN, as ground truth.

    The last digit decides between anchors that each hold a whole box, so these are the project's
    own boxes, once they are seen to be the same.
    """
    in_view = guidance.seen_from(strong)
    truths = select(in_view.targets, in_view.teaches_rpn)
    for truth, of_image in zip(truths, labels, strict=True):
        plain = [x for x in of_image if x["score"] > RULES["RPN_SCORE"]]
        assert truth.gt_classes.tolist() == [x["class"] for x in plain]
        boxes = torch.tensor([x["strong"] for x in plain], dtype=torch.float32)
        torch.testing.assert_close(truth.gt_boxes.tensor, boxes, rtol=0, atol=1e-4)
    return truths


def plain_losses(
    student, labels: list[list[dict]], truths: list, judges: list[Head], strong
) -> dict:
    """The four losses of equations 3, 4, 5, 10 and 11, by Detectron2's models and loops."""
    images = student.preprocess_image(strong)
    proposals, losses = student.proposal_generator(images, student.backbone(images.tensor), truths)
    cls_sum = weight_sum = reg_sum = 0.0
    num_rois = 0
    for i, judge in enumerate(judges):
        head, to_weak = Head(student, strong[i]), WEAK[i] @ np.linalg.inv(STRONG[i])
        boxes = proposals[i].proposal_boxes.tensor.tolist()
        for_cls = [x for x in labels[i] if x["score"] > RULES["CLS_SCORE"]]
        for_reg = [x for x in labels[i] if x["variance"] < RULES["REG_VARIANCE"]]
        for box in [*boxes, *(x["strong"] for x in for_cls)]:
            log_probabilities, _ = head(box)
            match = best(box, for_cls)
            label = match["class"] if match else NUM_CLASSES
            weight = 1.0 if match else math.exp(judge(carried(box, to_weak))[0][NUM_CLASSES])
            cls_sum += -weight * log_probabilities[label]
            weight_sum += weight
            num_rois += 1
        for box in [*boxes, *(x["strong"] for x in for_reg)]:
            match = best(box, for_reg)
            if match:
                predicted = head(box)[1][match["class"]].tolist()
                wanted = deltas_to(box, match["strong"])
                reg_sum += sum(abs(p - q) for p, q in zip(predicted, wanted, strict=True))
    losses = {k: float(v) for k, v in losses.items()}
    losses |= {"loss_cls": cls_sum / weight_sum, "loss_box_reg": reg_sum / num_rois}
    return {k: RULES["UNSUP_LOSS_WEIGHT"] * v for k, v in losses.items()}


def test_all_losses_on_unlabeled_images_are_those_of_the_plain_implementation(monkeypatch):
    student, teacher, plain_student, plain_teacher = models()
    weak = [plain_view(i, SIZE, WEAK[i]) for i in range(2)]
    strong = [plain_view(10 + i, SIZE, STRONG[i]) for i in range(2)]
    noises, draw = [], box_jitter.draw_noise
    monkeypatch.setattr(
        box_jitter, "draw_noise", lambda *args: noises.append(draw(*args)) or noises[-1]
    )
    with EventStorage():
        guidance = teacher.annotate(weak)
        losses = student([labeled_view(20, size=SIZE)], strong, guidance)
        with torch.no_grad():
            judges = [Head(plain_teacher, view) for view in weak]
            maps = [s @ np.linalg.inv(w) for w, s in zip(WEAK, STRONG, strict=True)]
            labels = [
                pseudo_labels(plain_teacher, *x)
                for x in zip(judges, weak, maps, noises, strict=True)
            ]
            truths = truths_for_rpn(labels, guidance, strong)
            expected = plain_losses(plain_student, labels, truths, judges, strong)
    # Each threshold divides the pseudo boxes, each in its own way.
    for of_image in labels:
        by_score = [x["score"] > RULES["CLS_SCORE"] for x in of_image]
        by_variance = [x["variance"] < RULES["REG_VARIANCE"] for x in of_image]
        assert 0 < sum(by_score) < len(of_image) and 0 < sum(by_variance) < len(of_image)
        assert by_score != by_variance
    found = {
        k.removesuffix("_unsup"): float(v.detach()) for k, v in losses.items() if "_unsup" in k
    }
    assert found == pytest.approx(expected, rel=1e-4)
    assert min(found.values()) > 0
