#!/usr/bin/env python
"""Train or evaluate Soft Teacher, or its supervised baseline, as a config says.

    python train_net.py --config-file configs/coco/soft_teacher_R_50_FPN_10pct.yaml --num-gpus 8
    python train_net.py --config-file FILE --resume
    python train_net.py --config-file FILE --eval-only MODEL.WEIGHTS CHECKPOINT
    torchrun --nproc-per-node 8 train_net.py --config-file FILE
    srun --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 python train_net.py --config-file FILE

Any key of the config can be given at the end of the command line, as KEY VALUE pairs. SIGINT
(Ctrl-C), SIGTERM and SIGUSR2 stop training after the iteration that is under way, or inside an
evaluation, with a checkpoint; the exit status is 128 plus the signal's number then, and --resume
goes on. Beside --eval-only it names the last checkpoint of OUTPUT_DIR. Where torchrun or srun has
started all processes, they join instead of starting others; see docs/slurm.md.
"""

import argparse
import os

# First: it says how to get Detectron2 where there is none.
from soft_teacher import load_config

# isort: split
import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from soft_teacher.config import settle_device
from soft_teacher.data import check_test_sets, warn_of_shared_images
from soft_teacher.engine import (
    SoftTeacherTrainer,
    count_cpus,
    evaluate_models,
    evaluate_with_tta,
    launch_training,
    load_models,
)


def setup(args: argparse.Namespace) -> CfgNode:
    """The config of a run: defaults, then --config-file, then KEY VALUE pairs."""
    cfg = load_config(args.config_file, args.opts)
    cfg.OUTPUT_DIR = cfg.OUTPUT_DIR.replace("{fold}", str(cfg.DATASETS.FOLD))
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="soft_teacher")
    settle_device(cfg)
    if cfg.MODEL.DEVICE == "cpu" and comm.get_world_size() > 1:
        # Processes on one CPU share its cores; left alone, each would take all of them.
        torch.set_num_threads(max(1, count_cpus(os.environ) // comm.get_local_size()))
    cfg.freeze()
    default_setup(cfg, args)
    check_test_sets(cfg)
    return cfg


def evaluate(cfg: CfgNode, last_checkpoint: bool) -> dict:
    """Evaluate MODEL.WEIGHTS or the last checkpoint: both models if the file holds both."""
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty: name a set with ground truth to evaluate on.")
    models = load_models(cfg, last_checkpoint)
    results = evaluate_models(cfg, models)
    if cfg.TEST.AUG.ENABLED:
        for name, found in evaluate_with_tta(cfg, models).items():
            results[name].update(found)
    if comm.is_main_process():
        verify_results(cfg, results[next(iter(models))])
    return results


def main(args: argparse.Namespace) -> dict | None:
    """What each process runs."""
    cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg, args.resume)
    warn_of_shared_images(cfg)
    trainer = SoftTeacherTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser(epilog=__doc__).parse_args()
    launch_training(main, args)
