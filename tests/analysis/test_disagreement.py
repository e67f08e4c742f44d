"""Which images two models disagree on most."""

import pytest

from soft_teacher.analysis.disagreement import f1_score, most_different


def entry(x, category=1, score=0.9):
    return {"bbox": [x, 0, 10, 10], "category_id": category, "score": score}


OBJECTS = [entry(0), entry(20), entry(40, category=2)]


@pytest.mark.parametrize(
    ("predictions", "f1"),
    [
        (OBJECTS, 1.0),
        ([], 0.0),
        ([entry(0)], 2 * 1 / (1 + 3)),
        ([entry(0), entry(0)], 2 * 1 / (2 + 3)),
        ([entry(0), entry(40, category=1)], 2 * 1 / (2 + 3)),
        ([entry(0), entry(20, score=0.5)], 2 * 1 / (1 + 3)),
    ],
)
def test_f1_weighs_what_is_found_and_what_is_wrong(predictions, f1):
    assert f1_score(predictions, OBJECTS, 0.5) == pytest.approx(f1)


def test_nothing_where_nothing_is_is_perfect_and_anything_there_is_not():
    assert f1_score([], [], 0.5) == 1
    assert f1_score([entry(0, score=0.4)], [], 0.5) == 1
    assert f1_score([entry(0)], [], 0.5) == 0


def test_the_largest_difference_comes_first_whoever_is_better():
    pairs = [(0.5, 0.5), (1.0, 0.2), (0.0, 0.9), (0.1, 0.4), (0.4, 0.1)]
    assert most_different(pairs, 4) == [2, 1, 3, 4]
    assert most_different(pairs, 99) == [2, 1, 3, 4, 0]
