"""What a user reads when something that the project needs is not installed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def bare_python(*arguments: str) -> subprocess.CompletedProcess:
    """Run a Python that finds its standard library only."""
    return subprocess.run(
        [sys.executable, "-I", "-S", *arguments], capture_output=True, text=True, timeout=60
    )


def check_python(python: str | Path) -> subprocess.CompletedProcess:
    """Run `make check-python` on a Python, free from the settings of a make around the tests."""
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKEOVERRIDES")}
    return subprocess.run(
        ["make", "-C", str(ROOT), "check-python", f"PYTHON={python}"],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
    )


@pytest.mark.parametrize(
    "use",
    [
        "import soft_teacher",
        "import soft_teacher.engine.trainer",
        f"import runpy; runpy.run_path({str(ROOT / 'train_net.py')!r})",
    ],
    ids=["package", "module", "train_net.py"],
)
def test_without_detectron2_one_sentence_says_how_to_get_it(use):
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'projects')!r}); {use}"
    assert bare_python("-c", "import detectron2").returncode != 0
    done = bare_python("-c", code)
    assert done.returncode != 0
    assert done.stderr.count("Traceback") == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: soft_teacher needs Detectron2: run `make setup`, or ")
    assert last.endswith("git+https://github.com/facebookresearch/detectron2")


@needs_make
def test_a_python_that_does_not_run_is_refused():
    done = check_python("/bin/false")
    assert done.returncode != 0
    assert "PYTHON=/bin/false does not run or is older than Python " in done.stderr
    assert "lacks torch" not in done.stderr


@needs_make
def test_a_python_without_detectron2_is_refused(tmp_path):
    python = tmp_path / "bare python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    python.chmod(0o755)
    done = check_python(python)
    assert done.returncode != 0
    assert f"PYTHON={python} lacks torch or detectron2: install them there" in done.stderr
