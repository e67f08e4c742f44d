"""Trainings on fixed images that are shared out among processes and micro-steps.

All that is left to chance elsewhere is a function of the image here: every anchor and proposal is
sampled, the noise of box jittering depends on the box, and pseudo boxes on the image. So trainings
on the same images differ by rounding, and by what the way of sharing out does to the method.
"""

from datetime import timedelta
from pathlib import Path
from unittest import mock

import torch
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from ddp_worker import launch_two
from soft_teacher.engine.ema import EMATeacher
from soft_teacher.engine.loader_stream import LoaderStream
from soft_teacher.engine.precision import Precision
from soft_teacher.engine.train_step import SoftTeacherStep
from soft_teacher.modeling import box_jitter
from tiny import detections, labeled_view, plain_view, random_boxes, tiny_model

SIZE = (64, 80)
NUM_ITERS = 3
UNLABELED = 1000
EXHAUSTIVE = {
    "MODEL.RPN.IN_FEATURES": ["p3", "p4", "p5", "p6"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [48], [64], [128]],
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": 2000,
    # No box overlaps another one by more.
    "MODEL.RPN.NMS_THRESH": 1.1,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 2000,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 2000,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": 1.0,
    "SOFT_TEACHER.PSEUDO_LABELS.REG_VARIANCE": 10.0,
}


def noise_of_boxes(num_jitter: int, boxes: Tensor, distribution: str) -> Tensor:
    """Instead of `box_jitter.draw_noise`."""
    noise = [
        torch.randn(num_jitter, 4, generator=torch.Generator().manual_seed(int(box.sum() * 1000)))
        for box in boxes
    ]
    return torch.stack(noise, dim=1) if noise else boxes.new_zeros(num_jitter, 0, 4)


def num_pseudo_boxes(image: int) -> int:
    """Many in the even images of a step, few or none in the odd ones."""
    return 9 if image % 2 == 0 else image // 2 % 2


class Shares:
    """The images of each step that belong to this process, as streams of batches.

    The parts of a step are batch after batch of all processes in turn, as in
    `SeededBatchSampler`.
    """

    def __init__(self, num_images: int, accumulation_steps: int):
        self.num_images = num_images
        self.accumulation_steps = accumulation_steps
        self.size = num_images // (accumulation_steps * comm.get_world_size())

    def _images(self, number: int) -> range:
        first = (number * comm.get_world_size() + comm.get_rank()) * self.size
        return range(first, first + self.size)

    def labeled(self, start: int):
        for number in range(start, NUM_ITERS * self.accumulation_steps):
            yield [labeled_view(i, num_boxes=3, size=SIZE) for i in self._images(number)]

    def unlabeled(self, start: int):
        for number in range(start, NUM_ITERS * self.accumulation_steps):
            views = [plain_view(UNLABELED + i, SIZE) for i in self._images(number)]
            yield [{"weak": x, "strong": x} for x in views]


def give_pseudo_boxes(step: SoftTeacherStep) -> None:
    """Replace what the teacher detects, and leave no proposal where there is no pseudo box."""
    annotate, heads = step.teacher.model.annotate, step.student.roi_heads
    unlabeled_losses = heads.unlabeled_losses

    def annotate_and_replace(weak: list[dict]):
        guidance = annotate(weak)
        for i, view in enumerate(weak):
            image = view["image_id"] - UNLABELED
            boxes = random_boxes(image, num_pseudo_boxes(image), SIZE)
            guidance.labels[i] = detections(boxes, [0.95] * len(boxes), size=SIZE)
        return guidance

    def without_proposals(features, proposals, guidance):
        proposals = [
            p if len(t) else p[:0] for p, t in zip(proposals, guidance.targets, strict=True)
        ]
        return unlabeled_losses(features, proposals, guidance)

    step.teacher.model.annotate = annotate_and_replace
    heads.unlabeled_losses = without_proposals


def count_exchanges(step: SoftTeacherStep) -> list[int]:
    """A list that gets an entry whenever processes average a bucket of gradients."""
    exchanges: list[int] = []
    if step.model is step.student:
        return exchanges

    def hook(group, bucket):
        exchanges.append(step.iter)
        return allreduce_hook(group, bucket)

    step.model.register_comm_hook(None, hook)
    return exchanges


def train_on_shares(
    folder: str,
    num_images: int,
    accumulation_steps: int = 1,
    scope: str = "rank",
    options: dict | None = None,
) -> None:
    """Train, and save losses, gradients and weights to `folder`/`rank`.pth.

    Args:
        folder: where to.
        num_images: labeled images, and unlabeled ones, of one step over all processes.
        accumulation_steps: batches of one step of a process.
        scope: SOFT_TEACHER.NORMALIZER_SCOPE.
        options: further keys of the config.
    """
    torch.set_num_threads(1)
    student = tiny_model(seed=0, **EXHAUSTIVE, **(options or {}))
    shares = Shares(num_images, accumulation_steps)
    step = SoftTeacherStep(
        create_ddp_model(student, broadcast_buffers=False, device_ids=None),
        EMATeacher(student, 0.9),
        LoaderStream(shares.labeled),
        LoaderStream(shares.unlabeled),
        torch.optim.SGD([p for p in student.parameters() if p.requires_grad], 0.005, momentum=0.9),
        Precision("cpu", False),
        accumulation_steps=accumulation_steps,
        normalizer_scope=scope,
        log_period=1,
    )
    give_pseudo_boxes(step)
    exchanges = count_exchanges(step)
    logged, gradients, labeled_rois = [], [], []
    with EventStorage() as storage, mock.patch.object(box_jitter, "draw_noise", noise_of_boxes):
        for step.iter in range(NUM_ITERS):
            step.run_step()
            storage.step()
            logged.append({k: v for k, (v, _) in storage.latest().items() if "loss" in k})
            rois = [storage.latest()[f"roi_head/num_{x}_samples"][0] for x in ("fg", "bg")]
            labeled_rois.append(sum(rois))
            gradients.append(
                {n: p.grad.clone() for n, p in student.named_parameters() if p.requires_grad}
            )
    result = {
        "logged": logged,
        "gradients": gradients,
        "labeled_rois": labeled_rois,
        "student": student.state_dict(),
        "teacher": step.teacher.model.state_dict(),
        "updates": step.teacher.num_updates,
        "consumed": step.unlabeled.num_consumed,
        "exchanges": exchanges,
    }
    torch.save(result, Path(folder) / f"{comm.get_rank()}.pth")


def train_all(folder: str, runs: dict[str, tuple]) -> None:
    """Trainings, one after another, in folders of their own; each with its arguments."""
    for name, arguments in runs.items():
        place = Path(folder) / name
        place.mkdir(exist_ok=True)
        train_on_shares(str(place), *arguments)


def results_of_two(folder: Path, runs: dict[str, tuple]) -> dict[str, list[dict]]:
    """The results of both of two processes."""
    # Processes that wait for each other fail after this time.
    launch_two(train_all, folder, runs, timeout=timedelta(seconds=60))
    return {name: [_read(folder, name, rank) for rank in range(2)] for name in runs}


def results_of_one(folder: Path, runs: dict[str, tuple]) -> dict[str, dict]:
    """The results of this process alone."""
    train_all(str(folder), runs)
    return {name: _read(folder, name, 0) for name in runs}


def _read(folder: Path, name: str, rank: int) -> dict:
    return torch.load(folder / name / f"{rank}.pth", weights_only=True)


def assert_equal_trainings(first: dict, second: dict) -> None:
    """The same losses, gradients and weights, up to the rounding of float32."""
    # Labeled losses are divided by the RoIs of each process; here there are as many everywhere.
    assert first["labeled_rois"] == second["labeled_rois"]
    for a, b in zip(first["logged"], second["logged"], strict=True):
        assert a.keys() == b.keys()
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-7)
    differences = [
        largest_difference(a, b)
        for a, b in zip(first["gradients"], second["gradients"], strict=True)
    ]
    assert differences[0] < 1e-4
    # By then a rounding may have turned the sign of an L1 loss somewhere, or a ReLU.
    assert max(differences) < 0.02
    for model in ("student", "teacher"):
        torch.testing.assert_close(first[model], second[model], rtol=1e-5, atol=1e-5)


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Norm of the difference by the norm of the second, of the worst parameter."""
    return max(float((first[k] - second[k]).norm() / second[k].norm()) for k in second)
