import platform
import subprocess
import sys

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc that learns")
def test_memory_of_freed_images_is_kept_for_the_next_ones():
    """In a process of its own, for what glibc has learned it does not forget."""
    program = """
import resource, sys
import numpy as np
from soft_teacher.data.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def make_images():
    return [np.ones(4_000_000, np.uint8) for _ in range(6)]
make_images()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    make_images()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = [
        int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for command in ([sys.executable, "-c", program, word] for word in ("keep", "plain"))
    ]
    assert faults[0] < 0.1 * faults[1]
