"""A folder in which whole suites run in no time, because their trainings are made up."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import yaml

ROOT = Path(__file__).parents[1]
# A set that nobody looks into.
VAL = "made_up_val"

# In place of train_net.py. The student's AP is 1000 times the learning rate plus the square of the
# seed, the teacher's is one more. It fails with a momentum of 0.5 until a file "mended" is there,
# and with one of 0.25 it saves and stops when it is told to, the first time.
SCRIPT = """
import json, pathlib, signal, sys, time
here = pathlib.Path(sys.argv[0]).parent
pairs = dict(zip(sys.argv[-2::-2], sys.argv[:0:-2]))
output = pathlib.Path(pairs["OUTPUT_DIR"])
with open(here / "calls.txt", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
def save(*_):
    (output / "last_checkpoint").write_text("model.pth")
    sys.exit(143)
if pairs.get("SOLVER.MOMENTUM") == "0.25" and "--resume" not in sys.argv:
    signal.signal(signal.SIGTERM, save)
    (here / "waiting").touch()
    time.sleep(60)
if pairs.get("SOLVER.MOMENTUM") == "0.5" and not (here / "mended").exists():
    sys.exit("the cause of it")
ap = 1000 * float(pairs.get("SOLVER.BASE_LR", "0.01")) + int(pairs["SEED"]) ** 2
numbers = {"iteration": 1, "student/bbox/AP": ap, "teacher/bbox/AP": ap + 1}
(output / "metrics.json").write_text(json.dumps(numbers) + "\\n")
"""
LABELER = """
import pathlib, sys
pathlib.Path(sys.argv[sys.argv.index("--output") + 1]).write_text(" ".join(sys.argv[1:]))
"""


def row(name, **keys):
    return {"name": name, "paper": {"AP": 30.0}, **keys}


def lr_row(name, lr, **overrides):
    keys = {k.replace("__", "."): v for k, v in overrides.items()}
    return row(name, overrides={"SOLVER.BASE_LR": lr, **keys})


class Bench:
    """A folder with a base config, suites, and a train_net.py that takes no time."""

    def __init__(self, folder, module):
        self.folder, self.module = folder, module
        (folder / "train_net.py").write_text(SCRIPT)
        (folder / "tools").mkdir()
        (folder / "tools/pseudo_label.py").write_text(LABELER)
        base = {
            "VERSION": 2,
            "DATASETS": {"UNLABELED": ["coco_2017_unlabeled"], "TRAIN": [], "TEST": [VAL]},
            "MODEL": {"WEIGHTS": "elsewhere/model_0000749.pth"},
        }
        self.base = folder / "soft_teacher_x.yaml"
        self.base.write_text(yaml.safe_dump(base))
        supervised = {"SOFT_TEACHER": {"ENABLED": False}, "DATASETS": {"TEST": [VAL]}}
        (folder / "supervised_x.yaml").write_text(yaml.safe_dump({"VERSION": 2, **supervised}))

    def suite(self, rows, name="suite", **keys):
        content = {"title": "A title", "repetitions": {"seeds": [0, 3]}, "rows": rows, **keys}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    def run(self, suite, *options, overrides=()):
        # Sets that are not used need no files.
        data = ["--", "DATASETS.UNLABELED", "()", *overrides]
        arguments = [suite, "--base", self.base, "--output", self.folder / "out", *options, *data]
        return self.module.main([str(x) for x in arguments])

    def calls(self):
        path = self.folder / "calls.txt"
        return [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []

    def rows(self, name="suite"):
        content = json.loads((self.folder / f"out/{name}/table.json").read_text())
        return {x["name"]: x for x in content["rows"]}


def make_bench(folder, module, monkeypatch):
    """A bench whose trainings are looked at twenty times a second."""
    monkeypatch.setattr(module, "ROOT", folder)
    monkeypatch.setattr("soft_teacher.engine.child_process.POLL_SECONDS", 0.05)
    monkeypatch.setattr("soft_teacher.engine.suite_runner.POLL_SECONDS", 0.05)
    return Bench(folder, module)


def load_run_suite() -> ModuleType:
    """tools/run_suite.py as a module."""
    spec = importlib.util.spec_from_file_location("run_suite", ROOT / "tools/run_suite.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
