#!/usr/bin/env python3
"""Draw AP against the labeled fraction, as in figure 1 of the paper.

    python tools/plot_fractions.py results.csv --output fractions.png --paper

The table has a line for each training, with the columns set, percent (of the labels), method, seed
and AP (in percent). The picture has a panel for each set, with means over the seeds and bars of one
standard deviation (of the sample). --paper adds the numbers of the paper's table 2, on COCO; they
share a panel with a set that the table calls coco_2017_val.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from soft_teacher.analysis.fractions import (
    fraction_rows,
    plot_fractions,
    read_fractions,
    with_paper,
)
from soft_teacher.analysis.results import text_table


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="CSV file")
    parser.add_argument(
        "--output", type=Path, help="PNG file (default: that of the table with .png for its ending)"
    )
    parser.add_argument("--paper", action="store_true", help="add the paper's numbers")
    args = parser.parse_args(argv)
    if not args.results.is_file():
        parser.error(f"there is no file {args.results}")
    args.output = args.output or args.results.with_suffix(".png")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Read, draw and print the means."""
    args = parse_arguments(argv)
    fractions = read_fractions(args.results)
    if args.paper:
        fractions = with_paper(fractions)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_bytes(plot_fractions(fractions))
    print(text_table(["", "Labels", "AP", "Trainings"], fraction_rows(fractions)))
    print(f"Picture: {args.output}")


if __name__ == "__main__":
    main()
