"""A command in a process of its own, watched until it ends."""

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

POLL_SECONDS = 1.0


def never() -> bool:
    """Whether to stop, of a command that nothing stops."""
    return False


def run_command(
    command: Sequence[str],
    console: Path,
    on_poll: Callable[[], None],
    stopped: Callable[[], bool] = never,
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run a command to its end.

    Whatever ends the waiting, the command gets a SIGTERM, at which a training saves a checkpoint,
    and is waited for.

    Args:
        command: program and arguments.
        console: file for what it prints, appended.
        on_poll: called every second or so.
        stopped: whether to end the command; asked every second or so.
        environment: of the command; None for that of this process.

    Returns:
        Its exit code, or minus the signal that ended it.
    """
    with (
        open(console, "ab") as output,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        ) as process,
    ):
        try:
            while process.poll() is None and not stopped():
                on_poll()
                try:
                    process.wait(POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            if process.poll() is None:
                # On Ctrl-C, Popen itself would not wait.
                process.terminate()
                process.wait()
    return process.returncode


def last_lines(console: Path, count: int = 15) -> list[str]:
    """The end of what a command printed."""
    return console.read_text(errors="replace").splitlines()[-count:]
