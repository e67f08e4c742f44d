#!/usr/bin/env python3
r"""Measure a training step of Soft Teacher, and beside it stock Detectron2 on like work.

    python tools/benchmark.py --labeled 1 --unlabeled 4 --height 480 --width 640 \
        --pseudo-boxes 17 --json output/benchmark.json

Images and weights are made up; the pseudo boxes are put in the place of what the teacher detects,
after it did all its work, so that every loss has something to learn from. In turn with Soft
Teacher's step, stock Detectron2 does (a) a supervised step on as many images as the student sees,
with as many boxes, and (b) inference on the unlabeled ones. The overhead ratio is the time of
Soft Teacher's step over that of (a) and (b) together.

Any key of the config can be given at the end of the command line, as KEY VALUE pairs.
"""

import argparse
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from soft_teacher.analysis.results import text_table, versions, write_json
from soft_teacher.config import load_config, settle_device
from soft_teacher.engine.benchmark import Measurement, measure
from soft_teacher.engine.benchmark.arguments import TITLES, add_step_arguments, step_shape
from soft_teacher.engine.benchmark.comparison import CONTENDERS
from soft_teacher.engine.benchmark.memory import measure_peaks
from soft_teacher.engine.training_run import path_from_here

CONFIG = Path(__file__).resolve().parents[1] / "configs/coco/soft_teacher_R_50_FPN_10pct.yaml"


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_step_arguments(parser, CONFIG)
    parser.add_argument("--steps", type=int, default=10, help="measured steps, 2 or more")
    parser.add_argument("--warmup", type=int, default=2, help="steps before, which do not count")
    parser.add_argument(
        "--amp", action="store_true", help="mixed precision: float16 on a GPU, else bfloat16"
    )
    parser.add_argument(
        "--stock-as-is",
        action="store_true",
        help="Detectron2 in float32 and as it comes, whatever is asked of Soft Teacher",
    )
    parser.add_argument(
        "--memory",
        action="store_true",
        help="also measure the peak memory of both training steps, each in a process of its own",
    )
    parser.add_argument("--threads", type=int, help="of torch on the CPU (default: torch's choice)")
    args = parser.parse_args(argv)
    args.shape = step_shape(parser, args)
    for name, least in {"steps": 2, "warmup": 0}.items():
        if getattr(args, name) < least:
            parser.error(f"--{name} must be {least} or more")
    return args


def read_config(args: argparse.Namespace) -> CfgNode:
    """The config file and the keys of the command line, on a GPU if there is one."""
    cfg = load_config(str(args.config_file), args.opts)
    cfg.SOLVER.AMP.ENABLED = args.amp
    settle_device(cfg)
    return cfg


def describe_run(args: argparse.Namespace, cfg: CfgNode) -> dict[str, Any]:
    """Arguments, versions and machine, for the file."""
    device = torch.device(cfg.MODEL.DEVICE)
    on_gpu = device.type == "cuda"
    arguments = {k: v for k, v in vars(args).items() if k not in ("json", "shape")}
    arguments["config_file"] = path_from_here(args.config_file)
    dtype = ("float16" if on_gpu else "bfloat16") if args.amp else "float32"
    return {
        "arguments": arguments,
        "versions": versions(),
        "machine": {
            "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
            "processor": processor_name(),
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
        },
        "dtype": dtype,
        "memory_format": "channels_last" if cfg.MODEL.CHANNELS_LAST else "contiguous",
    }


def processor_name() -> str:
    """The processor's name as Linux gives it, or at least its architecture."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def describe_results(result: Measurement) -> dict[str, Any]:
    """Numbers for the file: medians, all steps, the ratio."""
    contenders = {
        name: {"median_seconds": result.medians(name), "steps": result.steps[name]}
        for name in CONTENDERS
    }
    return {
        **contenders,
        "overhead_ratio": result.overhead_ratio,
        "peak_memory_bytes": result.peak_memory,
        "pseudo_boxes_per_image": result.pseudo_boxes,
        "traffic": result.traffic.describe(),
    }


def print_results(args: argparse.Namespace, content: dict[str, Any]) -> None:
    """What a person wants to know."""
    machine = content["machine"]
    print(
        f"{args.labeled} labeled and {args.unlabeled} unlabeled images of {args.height} x "
        f"{args.width}, {args.pseudo_boxes} boxes each, {content['dtype']}; {machine['device']}, "
        f"{machine['processor']}, {machine['threads']} threads; medians of {args.steps} steps\n"
    )
    rows = []
    for name, title in TITLES.items():
        total, *phases = content[name]["median_seconds"].items()
        rows.append([title, f"{total[1]:.3f}", ""])
        if len(phases) > 1:
            rows += [[f"  {x}", f"{s:.3f}", f"{s / total[1]:.0%}"] for x, s in phases]
    print(text_table(["", "seconds", "share"], rows))
    ratio = content["overhead_ratio"]
    print(
        f"\nOverhead ratio: {ratio['median']:.3f} (half of the steps in "
        f"{ratio['quartiles'][0]:.3f} to {ratio['quartiles'][1]:.3f}, all in "
        f"{ratio['min']:.3f} to {ratio['max']:.3f})"
    )
    moved = [
        f"{name} {x['bytes'] / 1e9:.2f} GB at {x['bytes_per_second'] / 1e9:.0f} GB/s"
        for name, x in content["traffic"].items()
    ]
    print(f"Through memory, at least, and how fast: {', '.join(moved)}")
    print(f"Peak memory of Soft Teacher: {content['peak_memory_bytes'] / 2**20:.0f} MiB")
    if args.memory:
        ours, stock = content["peak_bytes"].values()
        print(
            f"Peak of training alone: Soft Teacher {ours / 2**20:.0f} MiB, (a) {stock / 2**20:.0f} "
            f"MiB, ratio {ours / stock:.3f}"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    args = parse_arguments(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    cfg = read_config(args)
    result = measure(cfg, args.shape, args.steps, args.warmup, args.stock_as_is)
    content = {**describe_run(args, cfg), **describe_results(result)}
    if args.memory:
        content["peak_bytes"] = measure_peaks(cfg, args.shape, args.stock_as_is)
    print_results(args, content)
    if args.json:
        write_json(args.json, content)
        print(f"All numbers: {args.json}")


if __name__ == "__main__":
    main()
