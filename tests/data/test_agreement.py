import copy

import pytest

from soft_teacher.data import agreement, labeled_records
from soft_teacher.data.agreement import check_same_on_all_ranks, records_digest


@pytest.fixture
def records(cfg):
    return labeled_records(cfg)


def change_box(records):
    records[3]["annotations"][0]["bbox"] = [5, 7, 21, 16]


def change_class(records):
    records[3]["annotations"][0]["category_id"] += 1


def change_order(records):
    records.reverse()


def change_name(records):
    records[2]["file_name"] += "x"


def change_size(records):
    records[2]["height"] += 1


@pytest.mark.parametrize(
    "change", [change_box, change_class, change_order, change_name, change_size]
)
def test_any_difference_changes_the_checksum(records, change):
    other = copy.deepcopy(records)
    assert records_digest(other) == records_digest(records)
    change(other)
    assert records_digest(other) != records_digest(records)


def test_the_place_of_the_data_on_a_machine_does_not_count(records):
    other = copy.deepcopy(records)
    for record in other:
        record["file_name"] = "/elsewhere/" + record["file_name"].rsplit("/", 1)[1]
    assert records_digest(other) == records_digest(records)


def test_ranks_that_differ_are_named_with_their_counts(records, monkeypatch):
    monkeypatch.setattr(agreement.comm, "get_world_size", lambda: 2)
    theirs = (6, "0" * 64)
    monkeypatch.setattr(agreement.comm, "all_gather", lambda ours: [ours, theirs])
    with pytest.raises(ValueError, match=r"labeled sets differ .*process 0: 7 .*process 1: 6"):
        check_same_on_all_ranks(records, "labeled sets")
    monkeypatch.setattr(agreement.comm, "all_gather", lambda ours: [ours, ours])
    check_same_on_all_ranks(records, "labeled sets")
