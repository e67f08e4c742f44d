#!/usr/bin/env python3
r"""Count what a training step of Soft Teacher computes, and the least that it could.

    python tools/count_step.py --labeled 1 --unlabeled 4 --height 480 --width 640 \
        --pseudo-boxes 17 --json output/step.json

Counted are FLOPs, bytes that operations read and write, RoIs that go through the box heads, and
the places where the host has to wait for a GPU. The floor is what stock Detectron2 needs for a
supervised step on the images that the student sees and for inference on those that the teacher
sees, and the teacher's box head for the boxes that it has to judge.

None of this depends on the machine; weights, images and pseudo boxes are made up, as in
tools/benchmark.py. Any key of the config can be given at the end, as KEY VALUE pairs.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from soft_teacher.analysis.results import text_table, write_json
from soft_teacher.config import load_config
from soft_teacher.engine.benchmark import BatchShape
from soft_teacher.engine.benchmark.arguments import TITLES, add_step_arguments, step_shape
from soft_teacher.engine.benchmark.arithmetic import StepWork, count_step
from soft_teacher.engine.benchmark.building import build_soft_teacher, build_stock_contenders
from soft_teacher.engine.benchmark.host_reads import count_host_reads

CONFIG = Path(__file__).resolve().parents[1] / "configs/coco/soft_teacher_R_50_FPN_10pct.yaml"


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_step_arguments(parser, CONFIG)
    args = parser.parse_args(argv)
    args.shape = step_shape(parser, args)
    return args


def count(cfg: CfgNode, shape: BatchShape) -> dict[str, Any]:
    """All counts of one step, for the file.

    Args:
        cfg: of a detector with one box head.
        shape: what a step works on.
    """
    soft_teacher, batch = build_soft_teacher(cfg, shape)
    supervised, inference = build_stock_contenders(soft_teacher, batch)
    # The first step makes what later ones have: anchors, the optimizer's state.
    soft_teacher.run()
    supervised.run()
    jitter = cfg.SOFT_TEACHER.JITTER
    copies = jitter.NUM if jitter.ENABLED else 0
    num_jittered = copies * shape.unlabeled * shape.num_boxes
    work = count_step(soft_teacher, supervised, inference, num_jittered)
    reads = {
        name: count_host_reads(contender.run)
        for name, contender in zip(TITLES, (soft_teacher, supervised, inference), strict=True)
    }
    return {**describe_work(work), "host_reads": reads}


def describe_work(work: StepWork) -> dict[str, Any]:
    """Counts of arithmetic, by name."""
    return {
        **{
            name: {"flops": getattr(work, name).flops, "traffic_bytes": getattr(work, name).traffic}
            for name in TITLES
        },
        "judging_flops": work.judging.flops,
        "judging_traffic_bytes": work.judging.traffic,
        "floor_flops": work.floor,
        "floor_traffic_bytes": work.floor_traffic,
        "flops_over_floor": work.ratio,
        "traffic_over_floor": work.traffic_ratio,
        "roi_rows": work.rows,
        "background_to_judge": work.background,
        "jittered_to_refine": work.jittered,
    }


def print_counts(counts: dict[str, Any]) -> None:
    """What a person wants to know."""
    rows = [
        [
            title,
            f"{counts[name]['flops'] / 1e9:.1f}",
            f"{counts[name]['traffic_bytes'] / 1e9:.1f}",
            *(str(n) for n in _reads_by_package(counts["host_reads"][name])),
        ]
        for name, title in TITLES.items()
    ]
    for title, name in (("(c) the teacher's judgement", "judging"), ("(a) + (b) + (c)", "floor")):
        sizes = (counts[f"{name}_flops"], counts[f"{name}_traffic_bytes"])
        rows.append([title, *(f"{x / 1e9:.1f}" for x in sizes), "", ""])
    print(text_table(["", "GFLOP", "GB moved", "host reads", "of them ours"], rows))
    print(
        f"\nOver the floor, (a) + (b) + (c): {counts['flops_over_floor']:.4f} times its FLOPs, "
        f"{counts['traffic_over_floor']:.3f} times its bytes"
    )
    print("RoIs through the box heads: " + _in_words(counts["roi_rows"]))
    print(
        f"Needed: {counts['background_to_judge']} background RoIs to judge, "
        f"{counts['jittered_to_refine']} jittered boxes to refine"
    )
    print("\nWhere a step of Soft Teacher makes the host wait")
    for package, places in counts["host_reads"]["soft_teacher"].items():
        table = [[place, str(n)] for place, n in Counter(places).most_common()]
        print(text_table([package, "times"], table), end="\n\n")


def _reads_by_package(reads: dict[str, dict[str, int]]) -> tuple[int, int]:
    return (
        sum(sum(places.values()) for places in reads.values()),
        sum(reads.get("soft_teacher", {}).values()),
    )


def _in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())


def main(argv: Sequence[str] | None = None) -> None:
    """Count, print, write."""
    args = parse_arguments(argv)
    cfg = load_config(str(args.config_file), args.opts)
    # Modes that count see operations on the CPU alike.
    cfg.MODEL.DEVICE = "cpu"
    counts = count(cfg, args.shape)
    print_counts(counts)
    if args.json:
        write_json(args.json, counts)
        print(f"All counts: {args.json}")


if __name__ == "__main__":
    main()
