#!/usr/bin/env python3
"""The demo: Soft Teacher against supervised training, on handwritten digits in photographs.

    python tools/demo.py
    python tools/demo.py --seeds 0 1 2 --equal-time
    python tools/demo.py -- SOFT_TEACHER.UNSUP_LOSS_WEIGHT 1.0

It makes the data in output/digits, trains both models with train_net.py, Soft Teacher from a
checkpoint of the supervised training, and writes results.json and report.html. What is finished is
not done again, an interrupted training goes on from its last checkpoint; a training whose config,
data or start changed starts over.
"""

import argparse
import hashlib
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from soft_teacher.analysis.metrics_log import final_ap, read_metrics
from soft_teacher.analysis.report import (
    ReportedData,
    ReportedRun,
    build_report,
)
from soft_teacher.analysis.results import (
    AP_NAMES,
    EQUAL_TIME,
    ap_by_model,
    ap_rows,
    format_seconds,
    summarize_seeds,
    text_table,
    versions,
    write_json,
)
from soft_teacher.config import load_config
from soft_teacher.data.digits import write_dataset
from soft_teacher.engine.progress_line import complete_visibly
from soft_teacher.engine.training_run import (
    TrainingFailedError,
    TrainingRun,
    path_from_here,
)

ROOT = Path(__file__).resolve().parents[1]
# Where configs/demo/Base-Digits.yaml expects the data, from the working directory.
DATA = Path("output/digits")
DATA_SEED = 0
VAL_SET = "digits_val"
CONFIGS = {"supervised": "supervised_lite0_FPN.yaml", "soft_teacher": "soft_teacher_lite0_FPN.yaml"}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0], help="of the trainings; the data stay the same"
    )
    parser.add_argument(
        "--scenes",
        type=int,
        nargs=3,
        default=[40, 1160, 200],
        metavar=("LABELED", "UNLABELED", "VAL"),
        help="how many to make",
    )
    parser.add_argument(
        "--config-dir",
        type=Path,
        default=ROOT / "configs/demo",
        help=f"folder of {' and '.join(CONFIGS.values())}",
    )
    parser.add_argument(
        "--equal-time",
        action="store_true",
        help="also train supervised for as long as Soft Teacher and its start took",
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=1 if torch.cuda.is_available() else min(2, os.cpu_count() or 1),
        help="that train together (default: %(default)s); two use two CPU cores better than the "
        "threads of one do",
    )
    parser.add_argument("--fresh", action="store_true", help="do everything again")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY VALUE", help="config keys for all trainings, after --"
    )
    args = parser.parse_args(argv)
    if len(args.overrides) % 2 == 1:
        parser.error(f"KEY VALUE pairs expected, not {' '.join(args.overrides)}")
    return args


def main() -> int:
    """Run the demo; returns the exit code."""
    args = parse_args()
    try:
        run_demo(args)
    except TrainingFailedError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; the same command goes on from the last checkpoint.", file=sys.stderr)
        return 130
    return 0


def run_demo(args: argparse.Namespace) -> None:
    """Data, trainings, results, report."""
    data = prepare_data(dict(zip(("labeled", "unlabeled", "val"), args.scenes, strict=True)), args)
    trainings = {seed: train(args, seed, data["digest"]) for seed in args.seeds}
    per_seed = [collect(runs, seed, data["seconds"]) for seed, runs in trainings.items()]
    results = {key: value for key, value in per_seed[0].items() if key != EQUAL_TIME}
    results["seconds"] = {k: v for k, v in results["seconds"].items() if k != EQUAL_TIME}
    written = {"Numbers": args.output / "results.json"}
    write_json(written["Numbers"], results)
    seeds = None
    if len(args.seeds) > 1 or args.equal_time:
        seeds = summarize_seeds(per_seed)
        written["All seeds"] = args.output / "seeds.json"
        write_json(written["All seeds"], seeds)
    written["Report"] = args.output / "report.html"
    runs = trainings[args.seeds[0]]
    written["Report"].write_text(write_report(results, runs, data["counts"], seeds))
    written["Teacher"] = runs["soft_teacher"].output_dir / "model_final.pth"
    print_results(results, seeds)
    for title, path in written.items():
        print(f"{title + ':':<11}{path}")


def prepare_data(counts: dict[str, int], args: argparse.Namespace) -> dict[str, Any]:
    """Make the scenes unless they are there.

    Returns:
        "counts", "seed", "seconds" (that making them took) and "digest" of the annotations.
    """
    stamp = DATA / "made.json"
    wanted = {"counts": counts, "seed": DATA_SEED}
    if stamp.is_file() and not args.fresh:
        made = json.loads(stamp.read_text())
        if wanted.items() <= made.items() and made["digest"] == digest_of_data():
            return made
    print(f"Making the data: {describe(counts)} in {DATA}", flush=True)
    start = time.perf_counter()
    # The stamp goes first and comes back last: what an interruption leaves has none.
    stamp.unlink(missing_ok=True)
    write_dataset(DATA, counts, DATA_SEED)
    seconds = time.perf_counter() - start
    made = {**wanted, "seconds": seconds, "digest": digest_of_data()}
    write_json(stamp, made)
    return made


def digest_of_data() -> str:
    """A digest of all annotation files, which differ when scenes do."""
    digest = hashlib.sha256()
    for path in sorted((DATA / "annotations").glob("*.json")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def describe(counts: dict[str, int]) -> str:
    """The numbers of scenes in words."""
    return ", ".join(f"{number} {split}" for split, number in counts.items()) + " scenes"


def train(args: argparse.Namespace, seed: int, digest: str) -> dict[str, TrainingRun]:
    """All trainings of one seed, by name."""
    folder = args.output / f"seed_{seed}"

    def run(name: str, config: str, inputs: str, *extra: str) -> TrainingRun:
        training = TrainingRun(
            ROOT / "train_net.py",
            args.config_dir / config,
            (*args.overrides, *extra, "SEED", str(seed)),
            folder / name,
            inputs,
            args.processes,
        )
        if args.fresh:
            training.remove()
        complete_visibly(training)
        return training

    supervised = run("supervised", CONFIGS["supervised"], digest)
    start = folder / "supervised" / start_checkpoint(args).name
    soft_teacher = run(
        "soft_teacher",
        CONFIGS["soft_teacher"],
        f"{digest} {supervised.fingerprint}",
        *("MODEL.WEIGHTS", str(start)),
    )
    runs = {"supervised": supervised, "soft_teacher": soft_teacher}
    if args.equal_time:
        seconds = supervised.training_seconds * share_before(start, supervised)
        longer = supervised.stretched_to(seconds + soft_teacher.training_seconds)
        runs[EQUAL_TIME] = run(EQUAL_TIME, CONFIGS["supervised"], digest, *longer)
    return runs


def start_checkpoint(args: argparse.Namespace) -> Path:
    """The checkpoint of the supervised training that Soft Teacher starts from, per its config."""
    cfg = load_config(str(args.config_dir / CONFIGS["soft_teacher"]), args.overrides)
    return Path(cfg.MODEL.WEIGHTS)


def share_before(checkpoint: Path, training: TrainingRun) -> float:
    """The part of a training that lies before one of its checkpoints, 0 to 1."""
    # Detectron2 names a checkpoint after the last iteration, counted from 0.
    return (int(checkpoint.stem.removeprefix("model_")) + 1) / training.config().SOLVER.MAX_ITER


def collect(runs: dict[str, TrainingRun], seed: int, data_seconds: float) -> dict[str, Any]:
    """The results of one seed, from what its trainings left."""
    metrics = {name: read_metrics(run.metrics_file) for name, run in runs.items()}
    results = {
        "supervised": final_ap(metrics["supervised"], "student"),
        "soft_teacher": {
            model: final_ap(metrics["soft_teacher"], model) for model in ("student", "teacher")
        },
        "seconds": {
            "install": install_seconds(),
            "data": data_seconds,
            **{name: run.training_seconds for name, run in runs.items()},
            "evaluation": sum(runs[name].evaluation_seconds for name in CONFIGS),
        },
        "seed": seed,
        "versions": versions(),
    }
    if EQUAL_TIME in runs:
        results[EQUAL_TIME] = final_ap(metrics[EQUAL_TIME], "student")
    return results


def install_seconds() -> float | None:
    """What `make` says of the installation; None where it installed nothing."""
    seconds = os.environ.get("SOFT_TEACHER_INSTALL_SECONDS")
    return float(seconds) if seconds else None


def write_report(
    results: dict[str, Any],
    runs: dict[str, TrainingRun],
    counts: dict[str, int],
    seeds: dict[str, Any] | None,
) -> str:
    """The report on one seed, with the table of all seeds if there are several."""
    supervised, soft_teacher = (
        ReportedRun(runs[name].output_dir, Path(path_from_here(runs[name].config_file)))
        for name in CONFIGS
    )
    python, script = map(
        path_from_here, (Path(sys.executable), ROOT / "tools/make_digits_dataset.py")
    )
    numbers = [x for split, number in counts.items() for x in (f"--{split}", str(number))]
    commands = [
        shlex.join([python, script, *numbers, "--output", str(DATA)]),
        *(shlex.join(run.command()) for run in runs.values()),
    ]
    return build_report(
        "Soft Teacher on handwritten digits in photographs",
        results,
        supervised,
        soft_teacher,
        ReportedData(VAL_SET, DATA / "annotations/val.json", DATA / "images", counts),
        commands,
        seeds,
    )


def print_results(results: dict[str, Any], seeds: dict[str, Any] | None) -> None:
    """The table, with means and deviations if there are several seeds."""
    print()
    if seeds is None:
        print(text_table(["", *AP_NAMES], ap_rows(ap_by_model(results))))
    else:
        print(text_table(["", *AP_NAMES], ap_rows(seeds["mean"], seeds["std"])))
        numbers = ", ".join(str(run["seed"]) for run in seeds["runs"])
        print(f"Seeds: {numbers}; mean ± standard deviation (n - {seeds['ddof']})")
    seconds = results["seconds"]
    spent = sum(seconds[x] for x in ("data", "supervised", "soft_teacher", "evaluation"))
    print(f"\nSeed {results['seed']} took {format_seconds(spent)}, installation apart.\n")


if __name__ == "__main__":
    sys.exit(main())
