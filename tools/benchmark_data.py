#!/usr/bin/env python3
"""Measure the data part of training: how fast views are made, and what a large set costs.

    python tools/benchmark_data.py throughput --json output/throughput.json
    python tools/benchmark_data.py throughput --images /path/to/photos
    python tools/benchmark_data.py scale --folder output/simulated --json output/scale.json
    python tools/benchmark_data.py padding --annotations instances_train.json

`throughput`: pairs of views that one core makes in a second, beside the floor: to decode the same
image with OpenCV and to resize it to both views' sizes. Images are made of photographs unless a
folder is given.

`scale`: writes a made-up set with the numbers of COCO's train2017 and unlabeled2017 into a folder
(about 0.6 GB and 240,000 links to a few images; kept for the next time) and measures, in a fresh
process without any model, how long both loaders take to the first batch and how much memory they
take with their workers.

`padding`: how much of a batch is image and not padding, by the sizes in a COCO file, for several
ways to draw scales and to group images. Nothing is decoded.

Any key of the config can be given at the end of the command line, as KEY VALUE pairs.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from soft_teacher import load_config
from soft_teacher.analysis.results import text_table, versions, write_json
from soft_teacher.data.image_sources import find_images
from soft_teacher.engine.benchmark.data_throughput import measure_throughput
from soft_teacher.engine.benchmark.loader_footprint import measure_footprint
from soft_teacher.engine.benchmark.padding import measure_padding
from soft_teacher.engine.benchmark.photos import write_photos
from soft_teacher.engine.benchmark.simulated_coco import Simulation, write_simulation
from soft_teacher.engine.training_run import path_from_here

CONFIG = Path(__file__).resolve().parents[1] / "configs/coco/Base-RCNN-FPN.yaml"
# Of one GPU in the official recipe at 10 %.
IMAGES_PER_GPU = ["SOLVER.IMS_PER_BATCH", "1", "SOLVER.IMS_PER_BATCH_UNLABELED", "4"]
GIB = 2**30
PADDINGS = {
    "a scale for each image, 2 groups (official)": [],
    "a scale for each image, 8 groups": ["DATALOADER.ASPECT_RATIO_GROUPS", "8"],
    "a scale for each step, 2 groups": ["INPUT.AUG.SCALE_PER_STEP", "True"],
    **{
        f"a scale for each step, {n} groups": [
            *("INPUT.AUG.SCALE_PER_STEP", "True"),
            *("DATALOADER.ASPECT_RATIO_GROUPS", str(n)),
        ]
        for n in (8, 16, 24)
    },
}


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    throughput = commands.add_parser("throughput", help="pairs of views a second on one core")
    throughput.add_argument("--images", type=Path, help="folder of images (default: made ones)")
    throughput.add_argument("--count", type=int, default=28, help="images, at most")
    throughput.add_argument("--rounds", type=int, default=9, help="over all images, 2 or more")
    scale = commands.add_parser("scale", help="start-up and memory with a set of COCO's size")
    coco = Simulation()
    scale.add_argument("--folder", type=Path, required=True, help="to write the set to")
    scale.add_argument("--labeled", type=int, default=coco.labeled, help="labeled images")
    scale.add_argument("--objects", type=int, default=coco.objects, help="objects in them")
    scale.add_argument("--unlabeled", type=int, default=coco.unlabeled, help="unlabeled images")
    scale.add_argument("--workers", type=int, default=8, help="of both loaders, an even number")
    scale.add_argument("--batches", type=int, default=20, help="taken before memory is measured")
    scale.add_argument("--repeats", type=int, default=3, help="fresh processes, one after another")
    padding = commands.add_parser("padding", help="how much of a batch is image")
    padding.add_argument("--annotations", type=Path, required=True, help="COCO file with sizes")
    padding.add_argument("--batch", type=int, default=4, help="images that one GPU holds")
    padding.add_argument("--batches", type=int, default=2000, help="to draw")
    for command in (throughput, scale, padding):
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--config-file", type=Path, default=CONFIG)
        command.add_argument("--json", type=Path, help="file to write all numbers to")
        command.add_argument("opts", nargs="*", metavar="KEY VALUE", help="keys of the config")
    args = parser.parse_args(argv)
    _check_numbers(parser, args)
    return args


def _check_numbers(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    least = {
        **{"count": 1, "rounds": 2, "labeled": 1, "objects": 1, "unlabeled": 1},
        **{"workers": 0, "batches": 1, "repeats": 1, "batch": 1},
    }
    for name, value in least.items():
        if getattr(args, name, value) < value:
            parser.error(f"--{name} must be {value} or more")
    if getattr(args, "workers", 0) % 2:
        parser.error("--workers must be even: each of the two loaders has half of them")


def run_throughput(args: argparse.Namespace) -> dict[str, Any]:
    """Measure and print how fast views are made."""
    cfg = load_config(str(args.config_file), args.opts)
    with tempfile.TemporaryDirectory() as folder:
        if args.images is None:
            files = [x["file_name"] for x in write_photos(Path(folder), args.count, args.seed)]
        else:
            files = find_images(str(args.images))[: args.count]
        records = [{"file_name": file, "image_id": i} for i, file in enumerate(files)]
        mean_bytes = sum(Path(file).stat().st_size for file in files) / len(files)
        found = measure_throughput(cfg, records, args.rounds, args.seed).describe()
    print(f"{len(files)} images of {mean_bytes / 1000:.0f} kB, {args.rounds} rounds, one core\n")
    total, *parts = found["parts_seconds"].items()
    rows = [[name, f"{1000 * s:.2f}", f"{s / total[1]:.0%}"] for name, s in [*parts, total]]
    print(text_table(["part of two views", "ms", "share"], rows))
    ratio = found["ratio"]
    print(
        f"\nPairs of views a second: {found['pairs_per_second']:.0f}"
        f"\nFloor, images a second: {found['floor_per_second']:.0f}"
        f"\nRatio: {ratio['median']:.3f} (half of the rounds in {ratio['quartiles'][0]:.3f} to "
        f"{ratio['quartiles'][1]:.3f}, all in {ratio['min']:.3f} to {ratio['max']:.3f})"
    )
    return {"images": len(files), "mean_file_bytes": mean_bytes, **found}


def run_scale(args: argparse.Namespace) -> dict[str, Any]:
    """Write the set; measure and print what its loaders cost."""
    simulation = Simulation(args.labeled, args.objects, args.unlabeled, seed=args.seed)
    sets = write_simulation(args.folder, simulation)
    opts = [*IMAGES_PER_GPU, "OUTPUT_DIR", str(args.folder / "output"), *args.opts]
    runs = [
        measure_footprint(args.config_file, opts, sets, args.workers, args.batches)
        for _ in range(args.repeats)
    ]
    print(
        f"{simulation.labeled:,} labeled images with {simulation.objects:,} objects, "
        f"{simulation.unlabeled:,} unlabeled ones; {args.workers} workers, {args.batches} batches "
        "of each loader\n"
    )
    rows = [
        [
            f"process {number}",
            f"{run['startup_seconds']:.1f}",
            f"{run['import_seconds']:.1f}",
            *(f"{run[key] / GIB:.2f}" for key in ("peak_rss_bytes", "main_pss_bytes", "pss_bytes")),
        ]
        for number, run in enumerate(runs, 1)
    ]
    header = ["", "first batches s", "imports s", "main peak GiB", "main PSS GiB", "all PSS GiB"]
    print(text_table(header, rows))
    return {"simulation": vars(simulation), "runs": runs}


def run_padding(args: argparse.Namespace) -> dict[str, Any]:
    """Draw the sizes of batches in several ways; print and return the shares of real pixels."""
    images = json.loads(args.annotations.read_text())["images"]
    records = [{"width": x["width"], "height": x["height"]} for x in images]
    found = {}
    for name, keys in PADDINGS.items():
        cfg = load_config(str(args.config_file), ["SEED", str(args.seed), *keys, *args.opts])
        found[name] = measure_padding(cfg, records, args.batch, args.batches)
    print(f"{len(records)} images, {args.batches} batches of {args.batch}\n")
    header = ["", "weak views", "strong views", "without rounding up to 32"]
    rows = [[name, *(f"{x:.3f}" for x in shares.values())] for name, shares in found.items()]
    print(text_table(header, rows))
    return {"images": len(records), "shares": found}


RUNS = {"throughput": run_throughput, "scale": run_scale, "padding": run_padding}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = parse_arguments(argv)
    found = RUNS[args.command](args)
    if args.json:
        arguments = {k: v for k, v in vars(args).items() if k != "json"}
        for key in ("config_file", "images", "folder", "annotations"):
            if arguments.get(key) is not None:
                arguments[key] = path_from_here(arguments[key])
        write_json(args.json, {"arguments": arguments, "versions": versions(), **found})
        print(f"All numbers: {args.json}")


if __name__ == "__main__":
    main()
