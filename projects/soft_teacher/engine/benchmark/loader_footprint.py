"""Start-up time and memory of both data loaders, measured in a process of their own.

Run as a program it is that process: it reads what to measure from its standard input and prints
the numbers.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import soft_teacher
from soft_teacher import load_config
from soft_teacher.data import build_labeled_loader, build_unlabeled_loader
from soft_teacher.engine.benchmark.simulated_coco import LABELED, UNLABELED, SimulatedSet

LOADERS = 2
_PROC = Path("/proc")
_MARK = "loader footprint: "


def measure_footprint(
    config_file: Path, opts: list[str], sets: dict[str, SimulatedSet], workers: int, batches: int
) -> dict[str, Any]:
    """Build both loaders in a fresh process and take batches from them.

    Args:
        config_file: config of the views and of the images in a batch.
        opts: further keys of the config, KEY VALUE pairs.
        sets: see `simulated_coco.write_simulation`.
        workers: worker processes of both loaders together, an even number.
        batches: taken from each loader before memory is measured, 1 or more.

    Returns:
        `startup_seconds`, from the start of the process until the first batch of both loaders is
        out, and of this `import_seconds`; `peak_rss_bytes` of the main process; and
        `pss_bytes`, the memory of the main process and its workers in which shared pages count
        once, with `main_pss_bytes` of the main process alone.

    Raises:
        RuntimeError: the process failed; what it printed comes with it.
    """
    custom = [[f"simulated_{n}", str(s.json_file), str(s.image_root)] for n, s in sets.items()]
    request = {
        "config_file": str(config_file),
        "batches": batches,
        "opts": [
            *("DATASETS.CUSTOM", str(custom)),
            *("DATASETS.TRAIN", f"('simulated_{LABELED}',)"),
            *("DATASETS.UNLABELED", f"('simulated_{UNLABELED}',)"),
            *("DATALOADER.NUM_WORKERS", str(workers // LOADERS)),
            *opts,
        ],
    }
    packages = str(Path(soft_teacher.__file__).parents[1])
    path = os.pathsep.join([packages, *filter(None, [os.environ.get("PYTHONPATH")])])
    request["started"] = time.time()
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith(_MARK)]
    if done.returncode or not answers:
        raise RuntimeError(f"Measuring the loaders failed:\n{done.stdout}{done.stderr}")
    return json.loads(answers[-1].removeprefix(_MARK))


def process_tree(root: int) -> list[int]:
    """Ids of a process and all its descendants."""
    parents = {}
    for folder in _PROC.iterdir():
        if folder.name.isdigit() and (folder / "stat").is_file():
            # The name, in parentheses, may hold anything; state and parent follow it.
            parents[int(folder.name)] = int(
                (folder / "stat").read_text().rpartition(")")[2].split()[1]
            )
    tree = [root]
    for known in tree:
        tree += [process for process, parent in parents.items() if parent == known]
    return tree


def proportional_memory(process: int) -> int:
    """Bytes of a process; a page that several share counts for each in equal parts."""
    return _read_kibibytes(_PROC / str(process) / "smaps_rollup", "Pss")


def peak_memory(process: int) -> int:
    """The most bytes that a process had in memory at once."""
    return _read_kibibytes(_PROC / str(process) / "status", "VmHWM")


def _read_kibibytes(file: Path, key: str) -> int:
    for line in file.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise ValueError(f"{file} has no {key}")


def _measure_here(request: dict[str, Any]) -> dict[str, Any]:
    """What the process of its own does."""
    imported = time.time()
    cfg = load_config(request["config_file"], request["opts"])
    loaders = [iter(build_labeled_loader(cfg)), iter(build_unlabeled_loader(cfg))]
    for loader in loaders:
        next(loader)
    first_batches = time.time()
    for _ in range(request["batches"] - 1):
        for loader in loaders:
            next(loader)
    own = os.getpid()
    memory = {process: proportional_memory(process) for process in process_tree(own)}
    return {
        "startup_seconds": first_batches - request["started"],
        "import_seconds": imported - request["started"],
        "peak_rss_bytes": peak_memory(own),
        "pss_bytes": sum(memory.values()),
        "main_pss_bytes": memory[own],
        "processes": len(memory),
    }


if __name__ == "__main__":
    print(_MARK + json.dumps(_measure_here(json.load(sys.stdin))), flush=True)
