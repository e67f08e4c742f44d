"""Rows named by masks are found with one wait of the host."""

import pytest
import torch
from detectron2.structures import Boxes

from soft_teacher.engine.benchmark.host_reads import count_host_reads
from soft_teacher.modeling.masked_rows import rows_where
from soft_teacher.modeling.view_geometry import clip_boxes


@pytest.mark.parametrize("sizes", [(5,), (0,), (300, 0, 7, 1)])
def test_rows_are_those_of_nonzero(sizes):
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(n, generator=generator) < 0.4 for n in sizes]
    found = rows_where(masks)
    assert [x.tolist() for x in found] == [x.nonzero().squeeze(1).tolist() for x in masks]
    assert all(x.dtype == torch.int64 for x in found)


def test_the_host_waits_once_for_all_masks():
    masks = [torch.rand(9) < 0.5 for _ in range(6)]
    reads = count_host_reads(lambda: rows_where(masks))
    assert sum(reads["soft_teacher"].values()) == 1
    assert reads.keys() == {"soft_teacher"}


def test_boxes_are_clipped_as_by_detectron2_without_a_wait():
    boxes = torch.tensor([[-3.0, 5, 40, 70], [10, 10, 20, 20], [90, -8, 130, -2]])
    wanted = Boxes(boxes.clone())
    wanted.clip((60, 100))
    assert torch.equal(clip_boxes(boxes, (60, 100)), wanted.tensor)
    assert not count_host_reads(lambda: clip_boxes(boxes, (60, 100)))
