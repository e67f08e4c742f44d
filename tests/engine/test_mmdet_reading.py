"""Files of mmdetection are read without running what they name."""

import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from soft_teacher.engine.mmdet_checkpoint.reading import read_mmdet_file, split_models

WEIGHTS = {"backbone.conv1.weight": torch.arange(6.0).reshape(2, 3)}


def save(path: Path, **parts) -> Path:
    torch.save({"state_dict": WEIGHTS, **parts}, path)
    return path


class HistoryBuffer:
    """With the state of mmengine 0.10's: arrays, and methods of its own by their names."""

    calls = 0

    def __init__(self):
        self._max_length = 10
        self._log_history = np.array([0.5, 0.25])
        self._count_history = np.array([1, 1])

    def mean(self):
        return 0.0

    def __getstate__(self):
        return {**self.__dict__, "statistics_methods": {"mean": HistoryBuffer.mean}}

    def __setstate__(self, state):
        HistoryBuffer.calls += 1


@pytest.fixture
def mmengine(monkeypatch):
    """A package of that name, as the file names it."""
    name = "mmengine.logging.history_buffer"
    for part in ("mmengine", "mmengine.logging", name):
        monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
    sys.modules[name].HistoryBuffer = HistoryBuffer
    monkeypatch.setattr(HistoryBuffer, "__module__", name)


def test_logs_of_mmengine_are_passed_over_unrun(tmp_path, mmengine):
    message_hub = {
        "log_scalars": {"train/loss": HistoryBuffer()},
        "runtime_info": {"best": np.float64(0.5), "seeds": np.arange(3), "iter": 7},
    }
    meta = {"dataset_meta": {"classes": ("cat", "dog")}, "cfg": "backbone=dict(style='caffe')"}
    path = save(tmp_path / "a.pth", message_hub=message_hub, meta=meta, param_schedulers=[])
    with pytest.raises(Exception, match=r"HistoryBuffer|getattr|numpy"):
        torch.load(path, weights_only=True)
    file = read_mmdet_file(path)
    assert HistoryBuffer.calls == 0
    assert list(file.models) == ["model"]
    assert torch.equal(
        file.models["model"]["backbone.conv1.weight"], WEIGHTS["backbone.conv1.weight"]
    )
    assert file.class_names == ("cat", "dog")
    assert file.style == "caffe"
    assert file.left_behind == ("message_hub", "param_schedulers")


class MakeFolder:
    """Makes a folder when it is unpickled in earnest."""

    def __init__(self, path: Path, by):
        self._path = path
        self._by = by

    def __reduce__(self):
        return self._by, (str(self._path),)


class Stranger:
    def __init__(self):
        self.value = 1


@pytest.mark.parametrize("where", ["meta", "message_hub", "optimizer"])
@pytest.mark.parametrize(
    ("make", "name"),
    [(os.mkdir, r"posix\.mkdir"), (os.makedirs, r"os\.makedirs"), (None, r"\S*Stranger")],
)
def test_what_might_run_code_is_refused_by_name(tmp_path, where, make, name):
    witness = tmp_path / "made"
    thing = Stranger() if make is None else MakeFolder(witness, make)
    path = save(tmp_path / "a.pth", **{where: {"x": thing}})
    with pytest.raises(ValueError, match=f"names {name}, .* nothing was loaded"):
        read_mmdet_file(path)
    assert not witness.exists()


def test_stand_ins_are_gone_after_reading(tmp_path, mmengine):
    path = save(tmp_path / "a.pth", message_hub={"x": HistoryBuffer()})
    read_mmdet_file(path)
    with pytest.raises(Exception, match="HistoryBuffer"):
        torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    ("meta", "wanted"),
    [
        ({"CLASSES": ["a", "b"]}, ("a", "b")),
        ({"CLASSES": "person"}, ("person",)),
        ({"dataset_meta": {"CLASSES": ("a",)}}, ("a",)),
        ({"CLASSES": None}, None),
        ({"CLASSES": [1, 2]}, None),
        ({}, None),
    ],
)
def test_class_names_of_all_versions(tmp_path, meta, wanted):
    assert read_mmdet_file(save(tmp_path / "a.pth", meta=meta)).class_names == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("style='pytorch'", "pytorch"),
        ('a=dict(style = "caffe"), b=dict(style="caffe")', "caffe"),
        ("style='pytorch', style='caffe'", None),
        ("lifestyle='caffe'", None),
    ],
)
def test_the_style_is_read_where_the_text_is_of_one_mind(tmp_path, text, wanted):
    assert read_mmdet_file(save(tmp_path / "a.pth", meta={"config": text})).style == wanted


def test_bare_and_prefixed_state_dicts(tmp_path):
    torch.save(WEIGHTS, tmp_path / "bare.pth")
    file = read_mmdet_file(tmp_path / "bare.pth")
    assert list(file.models) == ["model"]
    assert file.left_behind == ()
    both = {"student.a.b": torch.zeros(1), "teacher.a.b": torch.ones(1)}
    models = split_models(both)
    assert {k: list(v) for k, v in models.items()} == {"student": ["a.b"], "teacher": ["a.b"]}
    assert models["teacher"]["a.b"] == 1
    with pytest.raises(ValueError, match="neither: lone"):
        split_models({**both, "lone": torch.zeros(1)})


def test_files_of_before_torch_1_6_are_read(tmp_path):
    path = tmp_path / "old.pth"
    content = {"state_dict": WEIGHTS, "meta": {"CLASSES": ("a",), "best": np.float32(0.5)}}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    file = read_mmdet_file(path)
    assert file.class_names == ("a",)
    for key, tensor in WEIGHTS.items():
        assert torch.equal(file.models["model"][key], tensor)


def test_files_of_something_else(tmp_path):
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="no dict"):
        read_mmdet_file(tmp_path / "list.pth")
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no 'state_dict'"):
        read_mmdet_file(tmp_path / "other.pth")
    (tmp_path / "broken.pth").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(ValueError, match="damaged"):
        read_mmdet_file(tmp_path / "broken.pth")
