"""Either model of a checkpoint can be used by Detectron2 alone."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultPredictor
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.roi_heads import StandardROIHeads

from soft_teacher.engine import SoftTeacherCheckpointer, load_models
from soft_teacher.engine.export import export_model, needs_this_project, plain_config, read_model
from soft_teacher.engine.model_classes import known_categories, model_categories
from tiny import tiny_config, tiny_model

KEYS = {
    "INPUT__FORMAT": "RGB",
    "INPUT__MIN_SIZE_TEST": 64,
    "INPUT__MAX_SIZE_TEST": 96,
    # Untrained models do not reach the usual threshold.
    "MODEL__ROI_HEADS__SCORE_THRESH_TEST": 0.2,
    "MODEL__PIXEL_STD": [50.0, 51.0, 52.0],
}


@pytest.fixture
def training(tmp_path):
    """Student, teacher, their config and a checkpoint of both."""
    student, teacher = (tiny_model(seed, **KEYS) for seed in (1, 2))
    checkpointer = SoftTeacherCheckpointer(student, str(tmp_path), teacher=teacher)
    checkpointer.save("model_final")
    models = {"student": student.eval(), "teacher": teacher.eval()}
    return models, tiny_config(**KEYS), tmp_path / "model_final.pth"


def stock_config(file: Path) -> CfgNode:
    cfg = get_cfg()
    cfg.merge_from_file(str(file), allow_unsafe=False)
    cfg.MODEL.DEVICE = "cpu"
    return cfg


@pytest.mark.parametrize("name", ["student", "teacher"])
def test_the_exported_model_detects_in_plain_detectron2_what_the_original_detects(
    training, tmp_path, name
):
    models, cfg, checkpoint = training
    exported = export_model(checkpoint, name, cfg, tmp_path / "sub" / "exported.pth")
    assert exported == tmp_path / "sub" / "exported.yaml"
    predictor = DefaultPredictor(stock_config(exported))
    assert type(predictor.model) is GeneralizedRCNN
    assert type(predictor.model.roi_heads) is StandardROIHeads

    picture = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    found = predictor(picture)["instances"]
    rgb = torch.from_numpy(picture[:, :, ::-1].transpose(2, 0, 1).copy())
    with torch.no_grad():
        wanted, other = (
            models[x]([{"image": rgb, "height": 64, "width": 80}])[0]["instances"]
            for x in (name, "student" if name == "teacher" else "teacher")
        )
    assert len(wanted) > 0
    torch.testing.assert_close(found.pred_boxes.tensor, wanted.pred_boxes.tensor)
    torch.testing.assert_close(found.scores, wanted.scores)
    assert torch.equal(found.pred_classes, wanted.pred_classes)
    assert len(other) != len(found) or not torch.allclose(other.scores, found.scores)


def test_the_model_of_a_checkpoint_fits_stock_detectron2_key_by_key(training):
    models, cfg, checkpoint = training
    plain = plain_config(cfg)
    plain.MODEL.DEVICE = "cpu"
    for name in models:
        stock = build_model(plain)
        # Strict: raises on a missing or unexpected key.
        stock.load_state_dict(read_model(checkpoint, name), strict=True)


def test_the_plain_config_has_no_key_that_detectron2_lacks(training):
    _, cfg, _ = training
    assert "SOFT_TEACHER" in cfg

    def keys(node: CfgNode, prefix: str = "") -> set[str]:
        names = set()
        for key, value in node.items():
            names |= (
                keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {prefix + key}
            )
        return names

    assert keys(plain_config(cfg)) == keys(get_cfg())


def test_a_timm_backbone_keeps_its_keys_and_reads_no_other_weights():
    cfg = tiny_config(
        MODEL__BACKBONE__NAME="build_timm_fpn_backbone",
        MODEL__TIMM__NAME="resnet10t",
        MODEL__TIMM__WEIGHTS="backbone.pth",
    )
    assert needs_this_project(cfg) and not needs_this_project(tiny_config())
    timm = plain_config(cfg).MODEL.TIMM
    assert (timm.NAME, timm.WEIGHTS) == ("resnet10t", "")
    assert cfg.MODEL.TIMM.WEIGHTS == "backbone.pth"


def test_a_file_with_a_single_model_is_refused_by_name(training, tmp_path):
    models, cfg, _ = training
    best = tmp_path / "model_best_teacher.pth"
    torch.save({"model": models["teacher"].state_dict(), "metric": 1.0}, best)
    for name in models:
        with pytest.raises(ValueError, match=r"model_best_teacher\.pth does not hold a student"):
            export_model(best, name, cfg, tmp_path / "x.pth")
    assert not (tmp_path / "x.pth").exists()


def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path):
    text = tmp_path / "notes.pth"
    text.write_text("no weights")
    with pytest.raises(ValueError, match=r"notes\.pth is no file of weights"):
        read_model(text, "teacher")


def test_the_checkpoint_is_not_overwritten(training):
    _, cfg, checkpoint = training
    before = checkpoint.read_bytes()
    with pytest.raises(ValueError, match="is no place for the weights"):
        export_model(checkpoint, "teacher", cfg, checkpoint)
    assert checkpoint.read_bytes() == before


def test_the_command_reads_the_config_that_training_left(training, tmp_path, capsys):
    _, cfg, checkpoint = training
    (tmp_path / "config.yaml").write_text(cfg.dump())
    tool = Path(__file__).parents[2] / "tools" / "export_model.py"
    spec = importlib.util.spec_from_file_location("export_model", tool)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(checkpoint), "--model", "teacher"])
    written = tmp_path / "model_final_teacher.pth"
    assert str(written) in capsys.readouterr().out
    state = torch.load(written, weights_only=True)["model"]
    assert state.keys() == read_model(checkpoint, "teacher").keys()
    assert stock_config(written.with_suffix(".yaml")).MODEL.WEIGHTS == str(written)


def test_the_names_of_classes_go_from_file_to_file(training, tmp_path):
    """As those of a converted checkpoint, whose config names no set to train on."""
    _, cfg, checkpoint = training
    categories = [{"id": 10 * k + 1, "name": name} for k, name in enumerate(("cat", "dog", "cow"))]
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "categories": categories}, checkpoint)
    cfg.DATASETS.TRAIN = ()
    export_model(checkpoint, "teacher", cfg, tmp_path / "plain.pth")
    assert model_categories(cfg, tmp_path / "plain.pth") == categories
    assert known_categories(cfg, checkpoint) == categories
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    with pytest.raises(ValueError, match="does not name the 4 classes"):
        export_model(checkpoint, "teacher", cfg, tmp_path / "plain.pth")


def test_a_checkpoint_is_loaded_without_the_file_of_its_backbone(tmp_path):
    keys = {"MODEL__BACKBONE__NAME": "build_timm_fpn_backbone", **KEYS}
    keys["MODEL__TIMM__NAME"] = "tf_efficientnet_lite0"
    model = build_model(tiny_config(**keys, MODEL__TIMM__WEIGHTS=""))
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    gone = {"MODEL__TIMM__WEIGHTS": str(tmp_path / "gone.pth"), "OUTPUT_DIR": str(tmp_path)}
    cfg = tiny_config(**keys, **gone, MODEL__WEIGHTS=str(tmp_path / "model.pth"))
    found = load_models(cfg)["model"].state_dict()
    assert all(torch.equal(found[name], x) for name, x in model.state_dict().items())
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(ValueError, match=r"^MODEL\.WEIGHTS is empty; name the file"):
        load_models(cfg)
    with pytest.raises(ValueError, match="as there is no checkpoint in"):
        load_models(cfg, last_checkpoint=True)


def test_a_file_that_lacks_weights_of_the_model_is_no_detector(training, tmp_path):
    models, cfg, _ = training
    state = models["student"].state_dict()
    cfg.MODEL.WEIGHTS = str(tmp_path / "part.pth")
    torch.save(
        {"model": {k: v for k, v in state.items() if "cls_score" not in k}}, tmp_path / "part.pth"
    )
    with pytest.raises(ValueError, match=r"part\.pth lacks 2 weights of the model .*cls_score"):
        load_models(cfg)
    # Weights that the model has no use for do no harm.
    torch.save({"model": {**state, "more": torch.zeros(1)}}, tmp_path / "part.pth")
    assert load_models(cfg).keys() == {"model"}
