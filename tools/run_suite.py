#!/usr/bin/env python3
r"""Run a table of trainings: rows change a base config, seeds or folds repeat them.

    python tools/run_suite.py configs/suites/table_6.yaml \
        --base configs/coco/soft_teacher_R_50_FPN_10pct.yaml --processes 8
    python tools/run_suite.py SUITE.yaml --base FILE --seeds 0 --jobs 2 -- SOLVER.BASE_LR 0.005
    python tools/run_suite.py SUITE.yaml --base FILE --dry-run

It writes table.md, table.csv, table.json and table.png into a folder named after the suite and, if
rows have shares of labeled images of their own, fractions.csv for tools/plot_fractions.py. What is
finished is not done again, and what was cut off goes on from its last checkpoint; a row that is
changed is another training. Trainings that several suites have in common are done once if --output
is the same. A training that fails is named at the end, the others go on; the exit status is 1 then.
Several runs of this command share the work.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from soft_teacher.analysis.metrics_log import read_metrics
from soft_teacher.analysis.results import DDOF, write_json
from soft_teacher.analysis.suite_chart import draw_rows
from soft_teacher.analysis.suite_results import RowResult, last_evaluation, to_json
from soft_teacher.analysis.suite_table import markdown, to_csv, to_fractions_csv
from soft_teacher.config import load_config
from soft_teacher.engine.atomic_file import open_atomically
from soft_teacher.engine.stop_signal import StopSignal, exit_status
from soft_teacher.engine.suite import ALL, Row, Suite, read_suite
from soft_teacher.engine.suite_cells import Cell, Setting, repetitions_of, with_needs
from soft_teacher.engine.suite_plan import Planner
from soft_teacher.engine.suite_runner import SuiteRunner, job_environments
from soft_teacher.engine.training_run import path_from_here

ROOT = Path(__file__).resolve().parents[1]
NOT_CHOSEN = "It was left out with --rows."
UNCHECKED = "Its data are not here, so whether they are still those of the training is not known."
ALL_PERCENT = 100.0


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage="%(prog)s SUITE --base CONFIG [option ...] [-- KEY VALUE ...]",
        epilog="KEY VALUE pairs after -- are config keys of the base.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suite", type=Path, help="YAML file, such as those in configs/suites")
    parser.add_argument(
        "--base", type=Path, required=True, help="config that rows change, soft_teacher_*.yaml"
    )
    parser.add_argument(
        "--output", type=Path, help="folder (default: output/suites, in it one named after --base)"
    )
    parser.add_argument("--seeds", type=int, nargs="*", help="instead of the suite's")
    parser.add_argument("--folds", type=int, nargs="*", help="instead of the suite's")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these")
    parser.add_argument(
        "--all-sets",
        nargs="+",
        default=[],
        metavar="NAME",
        help="labeled sets for rows that are labeled: all",
    )
    parser.add_argument(
        "--start-from",
        metavar="CONFIG",
        help="file beside --base: Soft Teacher starts from a checkpoint of this training, in each "
        "repetition its own; the one that MODEL.WEIGHTS of the base names, or else the final one",
    )
    parser.add_argument("--processes", type=int, default=1, help="that train each together")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print the commands of all trainings")
    what.add_argument(
        "--list-commands",
        action="store_true",
        help="print a command for each training, for a SLURM array; whoever comes first trains "
        "what others need. Then run this without it for the table",
    )
    what.add_argument("--cell", metavar="NAME", help="train this one only, and write no table")
    what.add_argument(
        "--report-only", action="store_true", help="write the table of what is finished"
    )
    return parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; what follows "--" becomes `overrides`."""
    parser = make_parser()
    # argparse would look for KEY VALUE pairs right behind the suite alone.
    end = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:end])
    args.overrides = list(argv[end + 1 :])
    for option in ("processes", "jobs"):
        if getattr(args, option) < 1:
            parser.error(f"--{option} is {getattr(args, option)}; it must be at least 1")
    for option in ("seeds", "folds"):
        values = getattr(args, option) or []
        if len(set(values)) < len(values):
            parser.error(f"--{option} names a number twice; give each once")
    if len(args.overrides) % 2 == 1:
        parser.error(f"KEY VALUE pairs expected, not {' '.join(args.overrides)}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Do what is asked for; returns the exit status."""
    args = parse_args(sys.argv[1:] if argv is None else argv)
    try:
        return act(args)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1


def cell_commands(argv: Sequence[str]) -> list[list[str]]:
    """The command of each training, for a command line as that of this program.

    Raises:
        ValueError: the suite or the base cannot be used.
    """
    args = parse_args(argv)
    cells = plan(read_suite(args.suite), args, output_of(args))
    return [command_of(cell, args) for cell in to_train(cells, args)]


def output_of(args: argparse.Namespace) -> Path:
    """The folder of the trainings and tables."""
    return args.output or Path("output/suites") / f"{args.base.parent.name}_{args.base.stem}"


def to_train(cells: dict[str, list[Cell]], args: argparse.Namespace) -> list[Cell]:
    """The cells of the chosen rows and what they need, in order."""
    return with_needs([x for row, own in cells.items() if is_chosen(row, args) for x in own])


def act(args: argparse.Namespace) -> int:
    """Plan, then print, train or report."""
    suite, output = read_suite(args.suite), output_of(args)
    cells = plan(suite, args, output)
    ordered = to_train(cells, args)
    if args.dry_run:
        for cell in ordered:
            show(cell)
        return 0
    if args.list_commands:
        for cell in ordered:
            print(shlex.join(command_of(cell, args)))
        return 0
    if args.cell is not None:
        own = [cell for cell in ordered if cell.name == args.cell]
        if not own:
            raise ValueError(
                f"There is no training {args.cell}; the configs may have changed since it was "
                "listed, see --list-commands."
            )
        return train(with_needs(own), args)
    status = 0 if args.report_only else train(ordered, args)
    report(suite, cells, args, output / suite.path.stem)
    return status


def plan(suite: Suite, args: argparse.Namespace, output: Path) -> dict[str, list[Cell]]:
    """Name of the row -> its cells.

    Rows that are only cited are left out, and those that --rows leaves out unless they go with the
    base: what was trained of them earlier is reported.
    """
    names = [row.name for row in suite.rows]
    for name in args.rows or ():
        if name not in names:
            raise ValueError(f"{suite.path} has no row {name!r}; it has {', '.join(names)}.")
    setting = Setting(
        ROOT,
        args.base,
        output,
        tuple(args.overrides),
        tuple(args.all_sets),
        args.start_from,
        args.processes,
    )
    repetitions = repetitions_of(
        suite.seeds if args.seeds is None else tuple(args.seeds),
        suite.folds if args.folds is None else tuple(args.folds),
    )
    planner = Planner(suite, setting)
    cells = {}
    for row in suite.rows:
        if row.not_run is not None:
            continue
        try:
            cells[row.name] = planner.cells_of(row, repetitions)
        except ValueError:
            if is_chosen(row.name, args):
                raise
    return cells


def is_chosen(row: str, args: argparse.Namespace) -> bool:
    """Whether a row is to be trained."""
    return args.rows is None or row in args.rows


def show(cell: Cell) -> None:
    """Print what training this cell is."""
    print(f"# {cell.title}")
    if cell.labeling is not None:
        print(shlex.join(cell.labeling.command))
    print(shlex.join(cell.command))


def command_of(cell: Cell, args: argparse.Namespace) -> list[str]:
    """This very command for one cell."""
    command = [path_from_here(Path(sys.executable)), path_from_here(Path(__file__))]
    command += [str(args.suite), "--base", str(args.base)]
    command += ["--output", str(cell.setting.output)]
    for option in ("seeds", "folds", "rows", "all_sets"):
        values = getattr(args, option)
        if values:
            command += [f"--{option.replace('_', '-')}", *map(str, values)]
        elif values is not None and option in ("seeds", "folds"):
            command += [f"--{option}"]
    if args.start_from:
        command += ["--start-from", args.start_from]
    command += ["--processes", str(args.processes), "--cell", cell.name]
    # One command is one line for the array of jobs.
    overrides = [" ".join(x.splitlines()) for x in args.overrides]
    return [*command, *(["--", *overrides] if overrides else [])]


def train(cells: list[Cell], args: argparse.Namespace) -> int:
    """Train cells; returns the exit status."""
    environments = job_environments(
        args.jobs, args.processes, torch.cuda.device_count(), os.cpu_count() or 1, os.environ
    )
    stop = StopSignal()
    with stop.caught():
        failures = SuiteRunner(cells, environments, lambda: stop.number != 0).run()
    for title, reason in failures:
        print(f"\nFailed: {title}\n{reason}", file=sys.stderr)
    if stop.number:
        print("Stopped; the same command goes on from the last checkpoints.", file=sys.stderr)
        return exit_status(stop.number)
    return 1 if failures else 0


def report(
    suite: Suite, cells: dict[str, list[Cell]], args: argparse.Namespace, folder: Path
) -> None:
    """Write the table of what is finished, and print it."""
    rows = [collect(row, cells.get(row.name, []), args.report_only) for row in suite.rows]
    setting = f"Base config: {args.base}"
    setting += f", with {shlex.join(args.overrides)}." if args.overrides else "."
    text = markdown(suite.title, suite.note, setting, rows, suite.gap_closed)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "title": suite.title,
        "table": suite.table,
        "base": str(args.base),
        "overrides": args.overrides,
        "ddof": DDOF,
        "rows": to_json(rows, suite.gap_closed),
    }
    write_json(folder / "table.json", content)
    (folder / "table.md").write_text(text)
    (folder / "table.csv").write_text(to_csv(rows, suite.gap_closed))
    with open_atomically(str(folder / "table.png")) as f:
        f.write(draw_rows(suite.title, rows))
    if any(row.labeled is not None for row in rows):
        test_sets = load_config(str(args.base), args.overrides).DATASETS.TEST
        (folder / "fractions.csv").write_text(to_fractions_csv(rows, ", ".join(test_sets)))
    print(f"\n{text}\nTable: {folder}/table.md, .csv, .json and .png", flush=True)


def collect(row: Row, cells: list[Cell], without_data: bool) -> RowResult:
    """The results of the finished cells of a row.

    Args:
        row: of the suite.
        cells: of the row.
        without_data: whether to report also what was trained on data that are not here.
    """
    finished, unchecked = {}, False
    for cell in cells:
        if not cell.folder.exists():
            continue
        try:
            training = cell.training()
            is_finished = training.finished
        except ValueError:
            if not without_data:
                raise
            training = cell.unchecked_training()
            is_finished = training.was_finished
            unchecked = unchecked or is_finished
        if is_finished:
            finished[cell.repetition.label] = training
    runs = {label: last_evaluation(read_metrics(x.metrics_file)) for label, x in finished.items()}
    folders = {label: str(x.output_dir) for label, x in finished.items()}
    remark = row.not_run or (UNCHECKED if unchecked else "" if cells else NOT_CHOSEN)
    labeled = ALL_PERCENT if row.labeled == ALL else row.labeled
    return RowResult(row.name, row.paper, runs, len(cells), remark, folders, labeled)


if __name__ == "__main__":
    sys.exit(main())
