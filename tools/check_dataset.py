#!/usr/bin/env python3
"""Look data over before training: every image decoded, every annotation read.

    python tools/check_dataset.py --config-file configs/demo/soft_teacher_lite0_FPN.yaml
    python tools/check_dataset.py --annotations labeled.json --images images
    python tools/check_dataset.py --images "photos/**/*.jpg"

The first form checks all sets of a config, also against each other; any of its keys can be given
at the end of the command line, as KEY VALUE pairs. The second checks one annotated set, the third
a folder, glob pattern or text list of images. Results are a page, report.html, and all numbers and
complete lists in report.json. The exit status is 0 if nothing stops training, 1 if something
would, and 2 if the check itself could not be done.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from soft_teacher import load_config
from soft_teacher.analysis.dataset_report import build_json, build_report, summary
from soft_teacher.analysis.results import write_json
from soft_teacher.data.dataset_check import CheckedData, check_config, check_files
from soft_teacher.data.dataset_scan import scan_pool

DEFAULT_OUTPUT = Path("output/check_dataset")
FAILED = 2


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", type=Path, help="of the training")
    parser.add_argument("--annotations", help="COCO file of one set")
    parser.add_argument("--images", help="its folder; alone, also a glob pattern or a text list")
    parser.add_argument(
        "--output", type=Path, default=DEFAULT_OUTPUT, help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes that decode (default: one a CPU, here %(default)s)",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys")
    args = parser.parse_args(argv)
    if (args.config_file is None) == (args.images is None):
        parser.error("give either --config-file or --images, the latter also with --annotations")
    if args.config_file is not None and args.annotations is not None:
        parser.error("--annotations goes with --images, not with --config-file")
    if args.config_file is None and args.opts:
        parser.error(f"{' '.join(args.opts)}: config keys need --config-file")
    if args.config_file is not None and not args.config_file.is_file():
        parser.error(f"there is no file {args.config_file}")
    if args.workers < 1:
        parser.error(f"--workers is {args.workers}; it must be at least 1")
    if len(args.opts) % 2 == 1:
        parser.error(f"KEY VALUE pairs expected, not {' '.join(args.opts)}")
    return args


def check(args: argparse.Namespace) -> CheckedData:
    """Do what the command line asks for."""
    with scan_pool(args.workers) as pool:
        if args.config_file is None:
            return check_files(args.annotations, args.images, pool)
        return check_config(load_config(str(args.config_file), args.opts), pool)


def main(argv: Sequence[str] | None = None) -> int:
    """Check, write and say what was found; returns the exit status."""
    args = parse_arguments(argv)
    # What training logs of bad data stands in the report.
    logging.getLogger("soft_teacher").addHandler(logging.NullHandler())
    try:
        data = check(args)
    except BrokenProcessPool:
        print(
            "A process that decodes images was killed, most likely for lack of memory. Try again "
            f"with fewer than --workers {args.workers}.",
            file=sys.stderr,
        )
        return FAILED
    write_json(args.output / "report.json", build_json(data))
    page = args.output / "report.html"
    page.write_text(build_report(data), encoding="utf-8", errors="backslashreplace")
    # Names of files need not be valid text.
    print(summary(data).encode("utf-8", "backslashreplace").decode("utf-8"))
    print(f"Page:     {page}\nNumbers:  {args.output / 'report.json'}")
    return int(data.stops_training)


if __name__ == "__main__":
    sys.exit(main())
