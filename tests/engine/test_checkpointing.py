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
    with pytest.raises(ValueError, match=r"bad\.pth .*could run code.*another checkpoint"):
        SoftTeacherCheckpointer(torch.nn.Linear(1, 1), "").load(str(tmp_path / "bad.pth"))
    assert "pwned" not in capsys.readouterr().out


def test_a_checkpoint_that_was_tampered_with_is_refused_not_passed_over(tmp_path, capsys):
    checkpointer = saved_at(tmp_path, 1, 3)
    content = torch.load(tmp_path / "model_0000003.pth", weights_only=True)
    torch.save({**content, "x": Attack()}, tmp_path / "model_0000003.pth")
    found = checkpointer.find_complete()
    with pytest.raises(ValueError, match=r"model_0000003\.pth .*could run code"):
        checkpointer.load_training(found)
    assert "pwned" not in capsys.readouterr().out


def saved_at(folder, *iterations, final=None) -> SoftTeacherCheckpointer:
    """A checkpointer that has saved at these iterations, in this order."""
    checkpointer = SoftTeacherCheckpointer(torch.nn.Linear(3, 3), str(folder))
    for iteration in iterations:
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    if final is not None:
        checkpointer.save("model_final", iteration=final)
    return checkpointer


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def scramble(path):
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def change_one_weight(path):
    content = bytearray(path.read_bytes())
    weight = torch.load(path, weights_only=True)["model"]["weight"].numpy().tobytes()
    content[content.index(weight)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, empty, scramble, change_one_weight])
def test_a_damaged_checkpoint_is_passed_over_for_the_newest_complete_one(tmp_path, damage, caplog):
    checkpointer = saved_at(tmp_path, 9, 99, 109)
    damage(tmp_path / "model_0000109.pth")
    assert checkpointer.find_complete() == str(tmp_path / "model_0000099.pth")
    assert f"{tmp_path / 'model_0000109.pth'} is damaged" in caplog.text
    damage(tmp_path / "model_0000099.pth")
    assert checkpointer.find_complete() == str(tmp_path / "model_0000009.pth")
    damage(tmp_path / "model_0000009.pth")
    with pytest.raises(ValueError, match=r"(?s)no complete checkpoint.*model_0000099\.pth.*remove"):
        checkpointer.find_complete()


@pytest.mark.parametrize("tag", ["", None, "model_0000007.pth"])
def test_without_a_usable_last_checkpoint_the_newest_file_is_taken(tmp_path, tag, caplog):
    checkpointer = saved_at(tmp_path, 3, 1, final=2)
    if tag is None:
        (tmp_path / "last_checkpoint").unlink()
    else:
        (tmp_path / "last_checkpoint").write_text(tag)
        assert checkpointer.find_complete() == str(tmp_path / "model_0000003.pth")
        assert str(tmp_path / (tag or "last_checkpoint")) in caplog.text
    assert checkpointer.find_complete() == str(tmp_path / "model_0000003.pth")
    (tmp_path / "model_0000003.pth").unlink()
    # The final one has no number; it was saved at iteration 2.
    assert checkpointer.find_complete() == str(tmp_path / "model_final.pth")


def test_the_last_checkpoint_counts_even_if_there_are_later_ones(tmp_path):
    checkpointer = saved_at(tmp_path, 1, 5, 3)
    assert checkpointer.find_complete() == str(tmp_path / "model_0000003.pth")


def test_without_any_checkpoint_there_is_nothing_to_find(tmp_path):
    checkpointer = saved_at(tmp_path)
    (tmp_path / "model_best_teacher.pth").touch()
    assert checkpointer.find_complete() is None
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    with pytest.raises(ValueError, match=r"model_0000003\.pth cannot be read"):
        checkpointer.find_complete()


def test_a_complete_checkpoint_of_another_run_is_an_error_not_passed_over(tmp_path):
    checkpointer = saved_at(tmp_path, 1, 3)
    checkpointer.run = {"SEED": 7}
    with pytest.raises(ValueError, match=r"model_0000003\.pth is of another run"):
        checkpointer.load_training(checkpointer.find_complete())


def test_training_does_not_go_on_with_other_weights(tmp_path):
    SoftTeacherCheckpointer(torch.nn.Linear(2, 2), str(tmp_path)).save("model", iteration=0)
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
