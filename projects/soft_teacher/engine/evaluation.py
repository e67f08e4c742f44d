"""Evaluation of student and teacher side by side."""

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from soft_teacher.config import without_weights
from soft_teacher.data import ImageMapper
from soft_teacher.data.worker_signals import let_workers_outlive_stop_signals
from soft_teacher.engine.checkpointing import SoftTeacherCheckpointer
from soft_teacher.engine.random_state import untouched_random_state
from soft_teacher.engine.tta import SUFFIX, RCNNWithTTA

# Images of each process between two questions whether to stop.
ASK_PERIOD = 20

logger = logging.getLogger(__name__)


class EvaluationStoppedError(Exception):
    """An evaluation was cut off, on all processes at the same place."""


class StoppableLoader:
    """A test loader between whose images all processes ask together whether to stop.

    Args:
        loader: of one image in each batch, its share of which a process takes.
        stops: all processes call it together; whether they stop.
    """

    def __init__(self, loader: DataLoader, stops: Callable[[], bool]) -> None:
        self._loader = loader
        self._stops = stops

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        # Shares differ by an image: as many as these all processes have.
        in_common = len(self._loader.dataset) // comm.get_world_size()
        for number, batch in enumerate(self._loader):
            if number % ASK_PERIOD == 0 and number < in_common and self._stops():
                raise EvaluationStoppedError
            yield batch


class _Tester(DefaultTrainer):
    """Detectron2's evaluation, with images read as in training."""

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        loader = build_detection_test_loader(cfg, dataset_name, mapper=cls.mapper(cfg))
        let_workers_outlive_stop_signals(loader)
        return loader

    @staticmethod
    def mapper(cfg: CfgNode) -> ImageMapper:
        return ImageMapper(cfg)


def _stoppable_tester(stops: Callable[[], bool]) -> type[_Tester]:
    class StoppableTester(_Tester):
        @classmethod
        def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> StoppableLoader:
            return StoppableLoader(super().build_test_loader(cfg, dataset_name), stops)

    return StoppableTester


class _TesterOfViews(_Tester):
    """Gives images as they are: test-time augmentation resizes them itself, and only once."""

    @staticmethod
    def mapper(cfg: CfgNode) -> ImageMapper:
        return original_images(cfg)


def original_images(cfg: CfgNode) -> ImageMapper:
    """Reads images and leaves them in their size."""
    return ImageMapper(
        augmentations=[], image_format=cfg.INPUT.FORMAT, max_pixels=cfg.INPUT.MAX_PIXELS
    )


def evaluate_models(
    cfg: CfgNode, models: dict[str, nn.Module], stops: Callable[[], bool] | None = None
) -> dict[str, dict]:
    """Detectron2's evaluation of several models, each result under its model's name.

    Args:
        cfg: DATASETS.TEST names the sets; predictions go to OUTPUT_DIR/inference/NAME/SET.
        models: name -> model.
        stops: asked now and then, by all processes together, whether to stop.

    Returns:
        name -> what `DefaultTrainer.test` returns, e.g. {"teacher": {"bbox": {"AP": ...}}}; on
        the first process only, empty on the others.

    Raises:
        EvaluationStoppedError: `stops` said so. Models may be left in eval mode.
    """
    tester = _Tester if stops is None else _stoppable_tester(stops)
    return _evaluate(cfg, models, tester, "inference")


def evaluate_with_tta(cfg: CfgNode, models: dict[str, nn.Module]) -> dict[str, dict]:
    """The same with the test-time augmentation of TEST.AUG, under names of its own.

    Args:
        cfg: as above; predictions go to OUTPUT_DIR/inference_TTA/NAME/SET.
        models: as above.

    Returns:
        As above, with "_TTA" behind the names of the results: {"teacher": {"bbox_TTA": ...}}.

    Raises:
        ValueError: a model cannot look at an image several times.
    """
    models = {name: RCNNWithTTA(cfg, model) for name, model in models.items()}
    results = _evaluate(cfg, models, _TesterOfViews, f"inference{SUFFIX}")
    return {
        name: {f"{key}{SUFFIX}": value for key, value in found.items()}
        for name, found in results.items()
    }


def _evaluate(
    cfg: CfgNode, models: dict[str, nn.Module], tester: type[_Tester], folder: str
) -> dict[str, dict]:
    results = {}
    for name, model in models.items():
        logger.info(f"Evaluating the {name}")
        place = os.path.join(cfg.OUTPUT_DIR, folder, name)
        # What Detectron2 converts from records is written anew: an older file may be of other data.
        evaluators = [
            COCOEvaluator(d, output_dir=os.path.join(place, d), allow_cached_coco=False)
            for d in cfg.DATASETS.TEST
        ]
        # Test loaders draw a seed from torch's generator. Training must go on as it would have
        # without the evaluation, also after a resume from a checkpoint saved just before it.
        with untouched_random_state():
            results[name] = tester.test(cfg, model, evaluators)
    return results


def load_models(cfg: CfgNode, last_checkpoint: bool = False) -> dict[str, nn.Module]:
    """The models of the file MODEL.WEIGHTS, by name.

    Args:
        cfg: the config.
        last_checkpoint: take the last checkpoint of OUTPUT_DIR instead, if there is one.

    Returns:
        "student" and "teacher" if the file is a checkpoint of this project, else "model".

    Raises:
        ValueError: no file is named, or it lacks weights of the model, or has them in other shapes.
    """
    weights = cfg.MODEL.WEIGHTS
    if last_checkpoint:
        search = SoftTeacherCheckpointer(nn.Identity(), cfg.OUTPUT_DIR)
        weights = search.find_complete() or weights
    if not weights:
        raise ValueError(
            "MODEL.WEIGHTS is empty; name the file of a trained model"
            + (f", as there is no checkpoint in {cfg.OUTPUT_DIR}." if last_checkpoint else ".")
        )
    # The file has the weights of the backbone too, whose own may not be here.
    cfg = without_weights(cfg)
    model = build_model(cfg)
    rest = SoftTeacherCheckpointer(model, cfg.OUTPUT_DIR).load_whole(weights)
    if "teacher" not in rest:
        return {"model": model}
    teacher = build_model(cfg)
    teacher.load_state_dict(rest["teacher"])
    return {"student": model, "teacher": teacher}


def load_detector(cfg: CfgNode, which: str | None) -> tuple[str, nn.Module]:
    """The chosen model of the file MODEL.WEIGHTS, in eval mode, and its name.

    Args:
        cfg: the config.
        which: "teacher" or "student" of a checkpoint with both; None takes the teacher, or the
            one model of a file that has no other.

    Raises:
        ValueError: the file has one model, but another was asked for.
    """
    models = load_models(cfg)
    if which is None:
        which = "teacher" if "teacher" in models else "model"
    if which not in models:
        raise ValueError(
            f"{cfg.MODEL.WEIGHTS} is no checkpoint with student and teacher; leave --model out."
        )
    return which, models[which].eval()
