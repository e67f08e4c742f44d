"""The example of docs/new_detector.md trains by the contract that the page states."""

import copy
import re
from pathlib import Path

import pytest
import torch
from detectron2.engine import default_argument_parser
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.utils.events import EventStorage

import train_net
from one_stage import DETECTORS, FLIP, config
from soft_teacher.config import HEAD_SECTIONS, num_classes
from soft_teacher.engine.ema import EMATeacher
from soft_teacher.engine.loader_stream import LoaderStream
from soft_teacher.engine.precision import Precision
from soft_teacher.engine.train_step import SoftTeacherStep
from tiny import NUM_CLASSES, labeled_view, plain_view
from tiny_training import NARROW, checkpoint, write_config

PAGE = Path(__file__).parents[2] / "docs" / "new_detector.md"
NAME = "MeanTeacherRetinaNet"
KEYS = {
    "MODEL__META_ARCHITECTURE": NAME,
    "MODEL__RETINANET__SCORE_THRESH_TEST": 0.0,
    "SOFT_TEACHER__JITTER__ENABLED": False,
    "SOFT_TEACHER__BACKGROUND__RELIABILITY": "none",
    "SOFT_TEACHER__PSEUDO_LABELS__MIN_SCORE": 0.005,
    "SOFT_TEACHER__PSEUDO_LABELS__CLS_SCORE": 0.005,
}


@pytest.fixture
def example():
    """What the page's code defines, registered for as long as the test runs."""
    (code,) = re.findall("```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    names: dict = {}
    try:
        exec(compile(code, str(PAGE), "exec"), names)
        yield names
    finally:
        HEAD_SECTIONS.pop(NAME, None)
        META_ARCH_REGISTRY._obj_map.pop(NAME, None)


def test_the_example_is_a_detector_that_the_step_trains(example):
    cfg = config("retinanet", **KEYS)
    assert num_classes(cfg) == NUM_CLASSES
    torch.manual_seed(0)
    # As the trainer does: the name in the config is enough.
    student = build_model(cfg).train()
    assert type(student) is example[NAME]
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


def test_train_net_trains_evaluates_and_saves_the_example(example, tmp_path):
    keys = {**NARROW, **DETECTORS["retinanet"], **KEYS}
    config_file = write_config(tmp_path, SOLVER__MAX_ITER=2, VIS_PERIOD=0, **keys)
    options = ["--config-file", str(config_file), "OUTPUT_DIR", str(tmp_path / "out")]
    train_net.main(default_argument_parser().parse_args(options))
    logged = (tmp_path / "out/metrics.json").read_text()
    assert '"student/bbox/AP"' in logged and '"teacher/bbox/AP"' in logged
    saved = checkpoint(tmp_path / "out")
    assert saved["model"].keys() == saved["teacher"].keys()
    assert saved["iteration"] == 1


@pytest.mark.parametrize(
    "key",
    [{"SOFT_TEACHER__JITTER__ENABLED": True}, {"SOFT_TEACHER__BACKGROUND__RELIABILITY": "teacher"}],
)
def test_the_example_refuses_keys_that_it_does_not_obey(example, key):
    with pytest.raises(ValueError, match=r"SOFT_TEACHER.JITTER.ENABLED .*BACKGROUND.RELIABILITY"):
        build_model(config("retinanet", **{**KEYS, **key}))
