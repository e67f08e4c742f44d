"""Detectors with other backbones than ResNets are trained, supervised and under Soft Teacher."""

import pytest
import torch

from htc import write_semantic_maps
from htc_plus_plus import ADAMW, HTC_PLUS_PLUS, SWIN
from test_mask_training import add_masks, run
from tiny_training import checkpoint, unmoved, write_config

TIMM = {
    "MODEL.BACKBONE.NAME": "build_timm_fpn_backbone",
    "MODEL.TIMM.NAME": "resnet10t",
    "MODEL.TIMM.OUT_INDICES": (1, 2, 3, 4),
    "MODEL.TIMM.FREEZE_AT": 0,
}
MASKS = {"INPUT.MASK_FORMAT": "bitmask"}
LIVE_NORMS = "timm, live norms"
FAMILIES = {
    "Swin": {**SWIN, **ADAMW},
    "timm": TIMM,
    LIVE_NORMS: {**TIMM, "MODEL.TIMM.FREEZE_NORM": False},
    "timm, ConvNeXt": {
        **TIMM,
        "MODEL.TIMM.NAME": "convnext_atto",
        "MODEL.TIMM.OUT_INDICES": (0, 1, 2, 3),
    },
    "HTC++": {**HTC_PLUS_PLUS, **MASKS},
}
TRAINED = ("backbone.bottom_up.", "roi_heads.semantic_head.")
SUPERVISED = {
    "SOFT_TEACHER.ENABLED": False,
    "SOFT_TEACHER.EMA.ENABLED": False,
    "DATASETS.UNLABELED": (),
}


@pytest.mark.parametrize("semi_supervised", [True, False], ids=["soft teacher", "supervised"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_of_backbones_is_trained_and_evaluated(tmp_path, family, semi_supervised):
    if "timm" in family:
        pytest.importorskip("timm")
    keys = {**FAMILIES[family], "SOLVER.MAX_ITER": 2, **({} if semi_supervised else SUPERVISED)}
    config_file = write_config(tmp_path, **keys)
    for name in ("labeled", "val"):
        add_masks(tmp_path / f"{name}.json")
    logged = run(
        config_file,
        tmp_path / "out",
        # After the first iteration and after the second.
        SOLVER__CHECKPOINT_PERIOD=1,
        TEST__EVAL_PERIOD=0,
        DATASETS__SEMANTIC_ROOT=write_semantic_maps(tmp_path),
    )
    assert "skipped_steps" not in logged
    assert any(name.endswith("_unsup") for name in logged) == semi_supervised
    assert (min(logged.get("loss_semantic", [0])) > 0) == (family == "HTC++")
    assert "loss_semantic_unsup" not in logged
    models = {"student", "teacher"} if semi_supervised else {"student"}
    assert models == {name.split("/")[0] for name in logged if name.endswith("/bbox/AP")}
    first, second = (checkpoint(tmp_path / "out", f"model_{x}.pth") for x in ("0000000", "final"))
    for model in ["model", "teacher"] if semi_supervised else ["model"]:
        assert unmoved(first[model], second[model], TRAINED) == []
    means = [name for name in first["model"] if name.endswith("running_mean")]
    for model in ["model", "teacher"] if semi_supervised else ["model"]:
        changed = any(not torch.equal(first[model][x], second[model][x]) for x in means)
        assert changed == (family == LIVE_NORMS)
