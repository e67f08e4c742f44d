"""Counting right pseudo boxes: against an independent count by hand and by brute force."""

import itertools

import pytest
import torch
from detectron2.structures import Boxes

from soft_teacher.analysis.pseudo_label_quality import match_counts


def iou(a, b):
    """Overlap of two xyxy boxes in Python's floats."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def allowed_pairs(pred, pred_classes, truth, classes, threshold=0.5):
    """(overlap, i, j) of each pair that may be matched."""
    return [
        (iou(p, t), i, j)
        for (i, p), (j, t) in itertools.product(enumerate(pred), enumerate(truth))
        if pred_classes[i] == classes[j] and iou(p, t) >= threshold
    ]


def largest_overlap_first(pairs):
    rows, columns = set(), set()
    for _, i, j in sorted(pairs, reverse=True):
        if i not in rows and j not in columns:
            rows.add(i)
            columns.add(j)
    return len(rows)


def most_possible(pairs):
    """Size of the largest set of pairs without a common box, over all subsets."""
    for size in range(len(pairs), 0, -1):
        for chosen in itertools.combinations(pairs, size):
            if len({i for _, i, _ in chosen}) == len({j for _, _, j in chosen}) == size:
                return size
    return 0


def count(pred, pred_classes, truth, classes):
    return match_counts(
        Boxes(torch.tensor(pred, dtype=torch.float32).reshape(-1, 4)),
        torch.tensor(pred_classes, dtype=torch.int64),
        Boxes(torch.tensor(truth, dtype=torch.float32).reshape(-1, 4)),
        torch.tensor(classes, dtype=torch.int64),
    )


@pytest.mark.parametrize("seed", range(30))
def test_counts_equal_brute_force_on_crowded_scenes(seed):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(4, 2, generator=generator) * 20
    truth = torch.cat([corners, corners + 20 + torch.rand(4, 2, generator=generator) * 10], dim=1)
    noise = torch.randn(2, 4, 4, generator=generator) * 3
    pred = (truth + noise).flatten(0, 1)
    classes = torch.randint(0, 2, (4,), generator=generator)
    pred_classes = torch.randint(0, 2, (8,), generator=generator)
    arguments = [x.tolist() for x in (pred, pred_classes, truth, classes)]
    pairs = allowed_pairs(*arguments)
    correct, num_pseudo, num_truth = count(*arguments)
    assert (correct, num_pseudo, num_truth) == (largest_overlap_first(pairs), 8, 4)
    assert correct <= most_possible(pairs) <= 2 * correct


def test_an_object_counts_for_one_box_only():
    box = [0, 0, 10, 10]
    assert count([box, box, box], [1, 1, 1], [box], [1]) == (1, 3, 1)


def test_a_box_of_another_class_is_wrong_however_well_it_lies():
    box = [0, 0, 10, 10]
    assert count([box], [1], [box], [2]) == (0, 1, 1)


def test_an_overlap_of_exactly_half_is_right():
    assert count([[0, 0, 10, 10]], [0], [[0, 0, 20, 10]], [0]) == (1, 1, 1)
    assert count([[0, 0, 9, 10]], [0], [[0, 0, 20, 10]], [0]) == (0, 1, 1)


def test_nothing_predicted_or_nothing_there_still_counts_the_others():
    box = [0, 0, 10, 10]
    assert count([], [], [box], [0]) == (0, 0, 1)
    assert count([box, box], [0, 0], [], []) == (0, 2, 0)
    assert count([], [], [], []) == (0, 0, 0)
