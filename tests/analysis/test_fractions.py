"""AP against the labeled fraction, from a table to means and a picture."""

import importlib.util
import statistics
from pathlib import Path

import pytest

from soft_teacher.analysis.fractions import read_fractions, with_paper

HEADER = "set,percent,method,seed,AP,note\n"
ROWS = """own,1,supervised,0,10.0,
own,1,supervised,1,12.5,x
own,1,supervised,2,11.0,
own,10,supervised,0,30,
own,1,$x$ <b>,0,20,
coco_2017_val,10,mine,0,33,
"""


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text(HEADER + ROWS)
    return path


def test_means_and_deviations_are_over_the_seeds(table):
    point = read_fractions(table)["own"]["supervised"][1.0]
    values = [10.0, 12.5, 11.0]
    assert point.mean == pytest.approx(sum(values) / 3)
    assert point.std == pytest.approx(statistics.stdev(values))
    assert point.count == 3
    single = read_fractions(table)["own"]["supervised"][10.0]
    assert (single.mean, single.std, single.count) == (30, None, 1)


def test_the_papers_numbers_lie_beside_those_of_the_same_set(table):
    fractions = with_paper(read_fractions(table))
    assert [*fractions] == ["own", "coco_2017_val"]
    assert [*fractions["coco_2017_val"]] == [
        "mine",
        *(f"{x} (paper, table 2)" for x in ("supervised", "STAC", "Soft Teacher")),
    ]
    assert [*fractions["own"]] == ["supervised", "$x$ <b>"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("set,percent,seed,AP\nown,1,0,10\n", "no column method"),
        (HEADER, "holds no result"),
        (HEADER + "own,1,a,0,,\n", "AP is '' in line 2"),
        (HEADER + "own,1,a,0,nan,\n", "AP is 'nan' in line 2"),
        (HEADER + "own,0,a,0,1,\n", "percent is '0' in line 2"),
        (HEADER + "own,1,a,0\n", "AP is None in line 2"),
        (HEADER + "own,1,a,0,3,\nown,1.0,a,0,4,\n", "Seed 0 of .* twice: line 3"),
    ],
)
def test_a_wrong_table_is_refused_with_its_line(table, content, message):
    table.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_fractions(table)


def test_the_tool_writes_a_picture_and_prints_the_means(table, capsys):
    path = Path(__file__).parents[2] / "tools/plot_fractions.py"
    spec = importlib.util.spec_from_file_location("plot_fractions", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    tool.main([str(table), "--paper"])
    assert table.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "11.17 ± 1.26" in printed
    assert "34.04 ± 0.14" in printed
