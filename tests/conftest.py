"""Options of the tests, and what each module leaves behind."""

import os

# The tests compare with what the CPU computes, and start several processes on it.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog


def pytest_addoption(parser):
    parser.addoption(
        "--kills", type=int, default=5, help="trainings to kill in the tests of interruptions"
    )
    parser.addoption(
        "--soak-steps", type=int, default=60, help="steps of each of the two long trainings"
    )


@pytest.fixture(scope="module", autouse=True)
def _leave_the_process_as_it_was():
    """Trainings in the tests' own process register their sets and set the number of threads."""
    num_threads, sets = torch.get_num_threads(), set(DatasetCatalog.list())
    yield
    torch.set_num_threads(num_threads)
    for name in set(DatasetCatalog.list()) - sets:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name, None)
