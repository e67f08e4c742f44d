"""The example of docs/new_detector.md trains by the contract that the page states."""

import copy
import re
from pathlib import Path

import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils.events import EventStorage

from one_stage import FLIP, config
from soft_teacher.config import HEAD_SECTIONS, num_classes
from soft_teacher.engine.ema import EMATeacher
from soft_teacher.engine.loader_stream import LoaderStream
from soft_teacher.engine.precision import Precision
from soft_teacher.engine.train_step import SoftTeacherStep
from tiny import NUM_CLASSES, labeled_view, plain_view

PAGE = Path(__file__).parents[2] / "docs" / "new_detector.md"
NAME = "MeanTeacherRetinaNet"


def test_the_example_is_a_detector_that_the_trainer_trains():
    (code,) = re.findall("```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    names: dict = {}
    try:
        exec(compile(code, str(PAGE), "exec"), names)
        cfg = config(
            "retinanet",
            MODEL__META_ARCHITECTURE=NAME,
            MODEL__RETINANET__SCORE_THRESH_TEST=0.0,
            SOFT_TEACHER__JITTER__ENABLED=False,
            SOFT_TEACHER__BACKGROUND__RELIABILITY="none",
            SOFT_TEACHER__PSEUDO_LABELS__MIN_SCORE=0.005,
            SOFT_TEACHER__PSEUDO_LABELS__CLS_SCORE=0.005,
        )
        assert num_classes(cfg) == NUM_CLASSES
        torch.manual_seed(0)
        # As the trainer does: the name in the config is enough.
        student = build_model(cfg).train()
    finally:
        HEAD_SECTIONS.pop(NAME, None)
        META_ARCH_REGISTRY._obj_map.pop(NAME, None)
    assert type(student) is names[NAME]
    pairs = [{"weak": plain_view(7), "strong": plain_view(7, matrix=FLIP)}]
    step = SoftTeacherStep(
        student,
        EMATeacher(student, 0.9),
        LoaderStream(lambda start: ([labeled_view(i)] for i in range(start, 9))),
        LoaderStream(lambda start: (pairs for _ in range(start, 9))),
        torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=1e-3),
        Precision("cpu", False),
    )
    before = copy.deepcopy(student.state_dict())
    with EventStorage() as storage:
        step.run_step()
        logged = storage.latest()
    assert step.num_skipped == 0
    assert logged["pseudo_boxes_cls"][0] > 0
    assert logged["loss_cls_unsup"][0] > 0 and logged["loss_box_reg_unsup"][0] > 0
    for model in (student, step.teacher.model):
        assert not torch.equal(
            model.state_dict()["head.bbox_pred.weight"], before["head.bbox_pred.weight"]
        )
