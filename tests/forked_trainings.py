"""Trainings by train_net.py in processes of their own that start at once, to be killed.

Run as a program it imports everything once and forks a process for each request on its standard
input. :class:`ForkedTrainings` talks to it.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]


class ForkedTrainings:
    """Starts trainings and waits for them; each leads a process group of its own."""

    def __init__(self) -> None:
        path = os.pathsep.join(str(ROOT / x) for x in ("", "tests", "projects"))
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )

    def start(self, arguments: list[Any], console: Path, die: tuple[str, int] | None = None) -> int:
        """Start a training.

        Args:
            arguments: of train_net.py.
            console: file for what it prints, appended.
            die: ("bytes", n) ends the process by SIGKILL in the middle of a save, when it has
                written n bytes of checkpoints; ("before_rename", n) and ("after_rename", n) around
                the n-th time that a complete file gets its name.

        Returns:
            The process id.
        """
        request = {"arguments": [str(x) for x in arguments], "console": str(console), "die": die}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def wait(self) -> int:
        """Wait until the training has ended; its status, or minus the signal that ended it."""
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait(60)


def _serve() -> None:
    # Answers go where the tests read; all else that is printed goes to the error stream.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            request = json.loads(line)
            pid = os.fork()
            if pid == 0:
                _become_training(**request)
            print(pid, file=answers, flush=True)
            _, status = os.waitpid(pid, 0)
            print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _become_training(arguments: list[str], console: str, die: tuple[str, int] | None) -> NoReturn:
    os.setsid()
    # A training ends by itself in seconds. One that hangs must not hang the tests.
    signal.alarm(120)
    output = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    status = 1
    try:
        if die is not None:
            _die(*die)
        torch.manual_seed(0)
        launch_training(train_net.main, default_argument_parser().parse_args(arguments))
        status = 0
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die(where: str, count: int) -> None:
    """Patch the writer of checkpoints so that it ends this process."""
    left = count

    class DeadlyFile(atomic_file._ObservedFile):
        def write(self, data) -> int:
            nonlocal left
            if len(data) > left:
                super().write(bytes(data)[:left])
                _kill_self()
            left -= len(data)
            return super().write(data)

    replace = os.replace

    def deadly_replace(source: str, target: str) -> None:
        nonlocal left
        left -= 1
        if left == 0 and where == "before_rename":
            _kill_self()
        replace(source, target)
        if left == 0:
            _kill_self()

    if where == "bytes":
        atomic_file._ObservedFile = DeadlyFile
    else:
        atomic_file.os.replace = deadly_replace


if __name__ == "__main__":
    import torch
    from detectron2.engine import default_argument_parser

    import train_net
    from soft_teacher.engine import atomic_file, launch_training

    torch.set_num_threads(1)
    with contextlib.suppress(KeyboardInterrupt):
        _serve()
