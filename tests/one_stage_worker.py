"""What each of two processes runs in the distributed test of one-stage detectors."""

import torch
from detectron2.engine import create_ddp_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from one_stage import DETECTORS, student_of
from soft_teacher.engine.ema import EMATeacher
from soft_teacher.engine.loader_stream import LoaderStream
from soft_teacher.engine.precision import Precision
from soft_teacher.engine.train_step import SoftTeacherStep
from tiny import labeled_view, plain_view

EASY = {
    "SOFT_TEACHER.PSEUDO_LABELS.MIN_SCORE": 0.05,
    "SOFT_TEACHER.PSEUDO_LABELS.CLS_SCORE": 0.05,
}


def train(folder: str) -> None:
    """Two steps of each detector; save what each process ends with.

    Process 1 has labeled images of more objects, and an unlabeled one without anything to find.
    """
    torch.set_num_threads(1)
    rank = comm.get_rank()
    view = plain_view(1000 + rank)
    if rank == 1:
        view["image"].zero_()
    for name in DETECTORS:
        student = student_of(name, seed=rank, **EASY)
        step = SoftTeacherStep(
            create_ddp_model(student, broadcast_buffers=False, device_ids=None),
            EMATeacher(student, 0.9),
            LoaderStream(
                lambda start: (
                    [labeled_view(10 * i + rank, num_boxes=1 + 3 * rank)] for i in range(start, 9)
                )
            ),
            LoaderStream(lambda start: ([{"weak": view, "strong": view}] for _ in range(start, 9))),
            torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=1e-3),
            Precision("cpu", False),
            normalizer_scope="global",
        )
        with EventStorage(0):
            for step.iter in range(2):
                step.run_step()
        missing = [n for n, p in student.named_parameters() if p.requires_grad and p.grad is None]
        result = {
            "student": student.state_dict(),
            "missing": missing,
            "skipped": step.num_skipped,
            "normalizer": student.loss_normalizer,
        }
        torch.save(result, f"{folder}/{name}_{rank}.pth")
