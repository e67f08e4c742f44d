#!/usr/bin/env python
"""A SLURM of two nodes on this one machine, for the tests: `make test-slurm`.

    python tests/slurm/mini_slurm.py install         # Debian or Ubuntu, as root
    python tests/slurm/mini_slurm.py run COMMAND     # start, run COMMAND with SLURM_CONF, stop
    python tests/slurm/mini_slurm.py start           # prints the environment to export
    python tests/slurm/mini_slurm.py status
    python tests/slurm/mini_slurm.py stop

Everything lies in one folder (--folder), listens on the loopback device and runs as root: munge,
slurmctld, two slurmd named node1 and node2 of 4 CPUs each, slurmdbd with a MariaDB of its own. No
limit of memory or CPU is enforced. There are three partitions: jobs of `urgent` preempt and requeue
those of `low`, `main` has nothing to do with either. `stop` ends what `start` started, by process
id, removes the folder, and takes its two lines out of /etc/hosts.
"""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mini_slurm_parts import (
    MARIADB_INIT,
    NODES,
    SLURM_CONF,
    SLURMDBD_CONF,
    USER_SIGNAL,
    NoSlurmError,
    install,
    name_nodes,
    unname_nodes,
)

TIMEOUT = 120
DEFAULT_FOLDER = Path(tempfile.gettempdir()) / "soft_teacher_mini_slurm"


class MiniSlurm:
    """The daemons, their folder, and what is written down there about them."""

    def __init__(self, folder: Path):
        self.folder = folder.resolve()
        self.env = {
            **os.environ,
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")),
        }
        self._pid_file = self.folder / "pids.json"

    @property
    def to_export(self) -> dict[str, str]:
        """What users of this SLURM need in their environment."""
        return {"SLURM_CONF": self.env["SLURM_CONF"], "MINI_SLURM": str(self.folder)}

    def start(self) -> None:
        """Start all daemons and wait until both nodes are idle.

        Raises:
            NoSlurmError: a daemon does not come up; its log is named.
        """
        if self._pid_file.exists():
            raise NoSlurmError(f"{self.folder} is in use already: stop it first")
        self._write_files()
        name_nodes()
        try:
            self._start_daemons()
        except BaseException:
            self.stop(keep_folder=True)
            raise

    def _start_daemons(self) -> None:
        folder, munge = self.folder, self.folder / "munge"
        options = {
            "--key-file": "key",
            "--socket": "socket",
            "--pid-file": "pid",
            "--log-file": "log",
            "--seed-file": "seed",
        }
        munge_options = [f"{option}={munge / name}" for option, name in options.items()]
        self._daemon("munged", "--foreground", "--force", *munge_options)
        self._wait("munged", ["munge", f"--socket={munge / 'socket'}", "--no-input"])
        self._daemon(
            "mariadbd",
            "--no-defaults",
            "--user=root",
            f"--datadir={folder / 'mariadb'}",
            f"--socket={folder / 'mariadb.socket'}",
            f"--pid-file={folder / 'mariadb.pid'}",
            f"--port={self._port('mariadb')}",
            "--bind-address=127.0.0.1",
            f"--init-file={folder / 'mariadb.sql'}",
        )
        self._wait_for_port("mariadb")
        self._daemon("slurmdbd", "-D")
        self._wait("slurmdbd", ["sacctmgr", "--noheader", "list", "cluster"])
        # Before slurmctld, so that its first jobs are accounted for.
        self._call(["sacctmgr", "--immediate", "add", "cluster", "mini"])
        self._daemon("slurmctld", "-D")
        self._wait("slurmctld", ["scontrol", "ping"])
        for node in NODES:
            self._daemon("slurmd", "-D", "-N", node, log=node)
        idle = ["sinfo", "--noheader", "--states=idle", "--partition=main", "--format=%D"]
        self._wait("node1", idle, expected="2")

    def _write_files(self) -> None:
        for name in ("munge", "state", "spool", "log"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)
        (self.folder / "munge/key").write_bytes(secrets.token_bytes(128))
        (self.folder / "munge/key").chmod(0o400)
        (self.folder / "munge").chmod(0o711)
        names = ("slurmctld", "slurmdbd", "mariadb", *NODES)
        ports = dict(zip(names, _free_ports(len(names)), strict=True))
        (self.folder / "ports.json").write_text(json.dumps(ports))
        values = {f"{k}_port": v for k, v in ports.items()}
        values |= {"folder": self.folder, "password": secrets.token_hex(16)}
        values["slurmctld_parameters"] = USER_SIGNAL
        (self.folder / "slurm.conf").write_text(SLURM_CONF.format(**values))
        dbd = self.folder / "slurmdbd.conf"
        dbd.write_text(SLURMDBD_CONF.format(**values))
        dbd.chmod(0o600)
        (self.folder / "mariadb.sql").write_text(MARIADB_INIT.format(**values))
        data = f"--datadir={self.folder / 'mariadb'}"
        options = ["--no-defaults", "--user=root", "--skip-test-db", data]
        self._call(["mariadb-install-db", *options])

    def stop(self, keep_folder: bool = False) -> None:
        """End all jobs and daemons, in the reverse order of their start."""
        pids = self._pids()
        if self._alive("slurmctld"):
            with contextlib.suppress(NoSlurmError, subprocess.TimeoutExpired):
                subprocess.run(["scancel", "--user=root"], env=self.env, timeout=TIMEOUT)
                self._wait("slurmctld", ["squeue", "--noheader"], expected="")
        for name in reversed(pids):
            if self._alive(name):
                os.kill(pids[name][0], signal.SIGTERM)
                _wait_until(lambda name=name: not self._alive(name))
        self._pid_file.unlink(missing_ok=True)
        unname_nodes()
        if not keep_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def status(self) -> dict[str, bool]:
        """Which daemons run, by name."""
        return {name: self._alive(name) for name in self._pids()}

    def _daemon(self, *command: str, log: str = "") -> None:
        name = log or command[0]
        with open(self.folder / "log" / f"{name}.log", "wb") as file:
            process = subprocess.Popen(
                command,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        pids = {**self._pids(), name: (process.pid, _start_time(process.pid))}
        self._pid_file.write_text(json.dumps(pids))

    def _pids(self) -> dict[str, list[int]]:
        return json.loads(self._pid_file.read_text()) if self._pid_file.exists() else {}

    def _alive(self, name: str) -> bool:
        """Whether the process runs, and is not another one that got its number."""
        pid, started = self._pids().get(name, (0, None))
        # A child that has ended is no child of a later call of this program.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG) if pid else None
        return bool(pid) and _start_time(pid) == started

    def _wait(self, name: str, command: list[str], expected: str | None = None) -> None:
        """Wait until a command succeeds, and prints what is expected of it."""

        def succeeds() -> bool:
            if not self._alive(name):
                raise NoSlurmError(f"{name} ended, see {self.folder / 'log' / name}.log")
            result = subprocess.run(
                command, env=self.env, capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
            output = result.stdout.strip()
            return result.returncode == 0 and (expected is None or output == expected)

        if not _wait_until(succeeds):
            log = self.folder / "log" / name
            raise NoSlurmError(f"{name} is not ready ({' '.join(command)}), see {log}.log")

    def _wait_for_port(self, name: str) -> None:
        def listens() -> bool:
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", self._port(name))) == 0

        if not _wait_until(listens):
            raise NoSlurmError(f"{name} does not listen, see {self.folder / 'log'}")

    def _port(self, name: str) -> int:
        return json.loads((self.folder / "ports.json").read_text())[name]

    def _call(self, command: list[str]) -> None:
        result = subprocess.run(
            command, env=self.env, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if result.returncode != 0:
            raise NoSlurmError(f"{' '.join(command)}:\n{result.stdout}{result.stderr}")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for x in sockets:
            x.bind(("127.0.0.1", 0))
        return [x.getsockname()[1] for x in sockets]


def _start_time(pid: int) -> str | None:
    """When a process started, in clock ticks; None if there is none or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


def _wait_until(condition) -> bool:
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


def run(slurm: MiniSlurm, command: list[str]) -> int:
    """Run a command on a SLURM of its own; its exit status."""
    # The daemons would stay behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    print("Starting SLURM", flush=True)
    slurm.start()
    try:
        return subprocess.call(command, env={**slurm.env, **slurm.to_export})
    finally:
        slurm.stop()


def main() -> int:
    """Do what the command line says; the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("action", choices=["install", "start", "stop", "status", "run"])
    parser.add_argument("command", nargs=argparse.REMAINDER, help="of run")
    args = parser.parse_args()
    slurm = MiniSlurm(args.folder)
    try:
        if args.action in ("install", "start", "run"):
            install()
        if args.action == "run":
            return run(slurm, args.command)
        if args.action == "start":
            slurm.start()
            print("\n".join(f"export {k}={v}" for k, v in slurm.to_export.items()))
    except NoSlurmError as error:
        print(f"There is no SLURM here: {error}", file=sys.stderr)
        return 1
    if args.action == "stop":
        slurm.stop()
    if args.action == "status":
        status = slurm.status()
        print("\n".join(f"{k}: {'runs' if v else 'ended'}" for k, v in status.items()) or "stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
