"""Checkpoints load nothing that could run code, and say what they lack."""

import collections
import pickle

import numpy as np
import pytest
import torch

from soft_teacher.engine.checkpointing import SoftTeacherCheckpointer, check_pickle
from soft_teacher.engine.random_state import get_random_state, set_random_state


class Attack:
    def __reduce__(self):
        return print, ("pwned",)


def write_pickle(path, content):
    path.write_bytes(pickle.dumps(content, protocol=2))
    return str(path)


def test_a_model_zoo_pickle_of_arrays_is_loaded(tmp_path):
    model = torch.nn.Linear(2, 3)
    weights = {k: np.asarray(v.detach().numpy() * 2) for k, v in model.state_dict().items()}
    content = {"model": collections.OrderedDict(weights), "__author__": "somebody"}
    path = write_pickle(tmp_path / "zoo.pkl", content)
    SoftTeacherCheckpointer(model, "").load(path)
    np.testing.assert_array_equal(model.weight.detach().numpy(), weights["weight"])


def test_a_pickle_that_calls_something_is_refused(tmp_path, capsys):
    path = write_pickle(tmp_path / "bad.pkl", {"model": {}, "x": Attack()})
    with pytest.raises(ValueError, match=r"bad\.pkl.*print"):
        SoftTeacherCheckpointer(torch.nn.Linear(1, 1), "").load(path)
    assert "pwned" not in capsys.readouterr().out


def test_a_torn_pickle_is_refused(tmp_path):
    path = write_pickle(tmp_path / "torn.pkl", {"model": {"w": np.zeros(100)}})
    with open(path, "r+b") as f:
        f.truncate(60)
    with pytest.raises(ValueError, match=r"torn\.pkl"):
        check_pickle(path)


def test_a_pth_file_that_calls_something_is_refused(tmp_path, capsys):
    torch.save({"model": {}, "x": Attack()}, tmp_path / "bad.pth")
    with pytest.raises(pickle.UnpicklingError):
        SoftTeacherCheckpointer(torch.nn.Linear(1, 1), "").load(str(tmp_path / "bad.pth"))
    assert "pwned" not in capsys.readouterr().out


def test_training_does_not_go_on_with_other_weights(tmp_path):
    SoftTeacherCheckpointer(torch.nn.Linear(2, 2), str(tmp_path)).save("model")
    other = SoftTeacherCheckpointer(torch.nn.Linear(2, 3), str(tmp_path))
    with pytest.raises(ValueError, match="another model"):
        other.load_training(str(tmp_path / "model.pth"))


def test_random_states_survive_a_checkpoint(tmp_path):
    torch.manual_seed(4)
    np.random.seed(4)
    torch.save(get_random_state(), tmp_path / "state.pth")
    expected = torch.rand(3), np.random.rand(3)
    set_random_state(torch.load(tmp_path / "state.pth", weights_only=True))
    assert torch.equal(torch.rand(3), expected[0])
    np.testing.assert_array_equal(np.random.rand(3), expected[1])
