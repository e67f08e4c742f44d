"""A file has its name only when it is complete, whatever happens meanwhile."""

import os
import resource
import shutil
import signal

import pytest
import torch

from soft_teacher.engine.atomic_file import AtomicWrites, open_atomically, remove_leftovers
from soft_teacher.engine.checkpointing import SoftTeacherCheckpointer
from soft_teacher.safe_loading import is_complete


def test_content_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    path = str(tmp_path / "file")
    calls = []
    real_sync, real_replace = os.fsync, os.replace

    def sync(descriptor):
        calls.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        real_sync(descriptor)

    def replace(source, target):
        with open(source, "rb") as f:
            calls.append(("replace", f.read(), target))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", replace)
    with open_atomically(path, "w") as f:
        f.write("content")
        assert not os.path.exists(path)
    assert calls == [
        ("fsync", f"{path}.tmp"),
        ("replace", b"content", path),
        ("fsync", str(tmp_path)),
    ]


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyError), open_atomically(str(path), "w") as f:
        f.write("new")
        raise KeyError
    assert [x.read_text() for x in tmp_path.iterdir()] == ["old"]


def test_what_is_only_read_is_read_by_the_path_manager_behind(tmp_path):
    class Upstream:
        def open(self, path, mode):
            return ("opened", path, mode)

        def exists(self, path):
            return path == "there"

    manager = AtomicWrites(Upstream())
    assert manager.open("x", "rb") == ("opened", "x", "rb")
    assert manager.exists("there") and not manager.exists("elsewhere")


def test_leftovers_of_killed_saves_are_removed_and_nothing_else(tmp_path):
    names = {"model_0000003.pth.tmp", "last_checkpoint.tmp", "model_best_teacher.pth.tmp"}
    others = {"model_0000003.pth", "last_checkpoint", "notes.tmp"}
    for name in names | others:
        (tmp_path / name).touch()
    assert {x.name for x in remove_leftovers(str(tmp_path))} == names
    assert {x.name for x in tmp_path.iterdir()} == others


@pytest.fixture
def saved(tmp_path):
    """A checkpointer and the folder with its first checkpoint."""
    folder = tmp_path / "out"
    folder.mkdir()
    checkpointer = SoftTeacherCheckpointer(torch.nn.Linear(100, 100), str(folder))
    checkpointer.save("model_0000001", iteration=1)
    return checkpointer, folder


def assert_only_the_first(folder):
    assert {x.name for x in folder.iterdir()} == {"model_0000001.pth", "last_checkpoint"}
    assert (folder / "last_checkpoint").read_text() == "model_0000001.pth"
    assert is_complete(str(folder / "model_0000001.pth"))


def test_a_disk_that_fills_up_is_an_error_and_leaves_the_last_checkpoint(saved):
    checkpointer, folder = saved
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    # The system refuses to write beyond this, as it does on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"Cannot write .*model_0000002\.pth.*--resume"):
            checkpointer.save("model_0000002", iteration=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert_only_the_first(folder)
    assert checkpointer.saved_iteration == 1


def test_a_read_only_folder_is_an_error_and_leaves_the_last_checkpoint(saved):
    checkpointer, folder = saved
    folder.chmod(0o555)
    user = os.geteuid()
    try:
        if user == 0:
            # Root may write everywhere.
            os.seteuid(65534)
        with pytest.raises(PermissionError, match=r"Cannot write .*model_0000002\.pth"):
            checkpointer.save("model_0000002", iteration=2)
    finally:
        os.seteuid(user)
        folder.chmod(0o755)
    assert_only_the_first(folder)


def test_a_folder_that_vanished_is_an_error(saved):
    checkpointer, folder = saved
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match=r"Cannot write .*model_0000002\.pth.*exists"):
        checkpointer.save("model_0000002", iteration=2)
