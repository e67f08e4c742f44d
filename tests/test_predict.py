"""tools/predict.py as a user runs it."""

import importlib.util
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from pseudo_label_place import label_place
from soft_teacher import load_config
from soft_teacher.engine import SoftTeacherCheckpointer, load_models, prediction_output
from soft_teacher.engine.export import export_model
from soft_teacher.engine.prediction_output import PredictionOutput
from tiny import tiny_config, tiny_model
from tiny_training import NARROW, NUM_UNLABELED, write_config

TOOL = Path(__file__).parents[1] / "tools/predict.py"
# Random weights find every class everywhere with about this score.
SCORE = 0.25
# Drawing takes its time.
FEW = ("--device", "cpu", "TEST.DETECTIONS_PER_IMAGE", "5")
NAMES = [{"id": 10 * k + 10, "name": "rgb"[k]} for k in range(3)]


@pytest.fixture
def tool():
    spec = importlib.util.spec_from_file_location("predict", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Six images, unlabeled_0.png and so on, beside config.yaml and weights.pth."""
    return label_place(tmp_path_factory.mktemp("predict"))[0]


def run(tool, place, output, *options, pictures=False):
    """Look for objects in the unlabeled images, or in what the options name; the exit status."""
    arguments = ["--weights", place / "weights.pth", "--output", output]
    if "--input" not in options:
        arguments += ["--input", place / "unlabeled_*.png"]
    if "--score-threshold" not in options:
        arguments += ["--score-threshold", SCORE]
    return tool.main(
        [str(x) for x in (*arguments, *options, *([] if pictures else ["--no-pictures"]))]
    )


def written(output):
    """The content of images.json and results.json."""
    return [json.loads((output / f"{x}.json").read_text()) for x in ("images", "results")]


def by_image(results, image_id):
    """Category, score and box of each detection of an image."""
    return np.array(
        [(x["category_id"], x["score"], *x["bbox"]) for x in results if x["image_id"] == image_id]
    )


def detections(model, image):
    """What the model itself finds in an image (H, W, 3), BGR, as in `by_image`, and its masks."""
    view = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    with torch.no_grad():
        found = model([{"image": view, "height": image.shape[0], "width": image.shape[1]}])
    found = found[0]["instances"]
    found = found[found.scores > SCORE]
    left_top, right_bottom = found.pred_boxes.tensor.split(2, dim=1)
    columns = (10 * found.pred_classes[:, None] + 10, found.scores[:, None], left_top)
    return torch.cat([*columns, right_bottom - left_top], dim=1).numpy(), found


def detector(place, keys=()):
    weights = ("MODEL.WEIGHTS", str(place / "weights.pth"))
    return load_models(load_config(str(place / "config.yaml"), [*weights, *keys]))["model"].eval()


def write_video(path, frames, rate=12.5):
    size = frames[0].shape[1::-1]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
    for frame in frames:
        writer.write(frame)
    writer.release()


def read_video(path):
    video, frames = cv2.VideoCapture(str(path)), []
    while (read := video.read())[0]:
        frames.append(read[1])
    return frames, video.get(cv2.CAP_PROP_FPS)


def test_the_results_are_what_the_model_finds_in_coco_format(tool, place, tmp_path, capsys):
    output = tmp_path / "out"
    assert run(tool, place, output) == 0
    images, results = written(output)
    assert images["categories"] == NAMES
    assert [(x["id"], x["height"], x["width"]) for x in images["images"]] == [
        (i + 1, 64, 64) for i in range(NUM_UNLABELED)
    ]
    model = detector(place)
    for image in images["images"]:
        pixels = np.asarray(Image.open(image["file_name"]))[:, :, ::-1]
        expected, _ = detections(model, pixels)
        assert len(expected) > 0
        found = by_image(results, image["id"])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    # pycocotools reads both files.
    loaded = COCO(str(output / "images.json")).loadRes(str(output / "results.json"))
    assert len(loaded.anns) == len(results)
    assert f"{len(results)} detections with a score above 0.25 in 6 images" in (
        capsys.readouterr().out
    )


def test_images_in_batches_and_from_workers_give_the_same(tool, place, tmp_path):
    run(tool, place, tmp_path / "one")
    batches = ("--batch-size", "4", "DATALOADER.NUM_WORKERS", "2")
    assert run(tool, place, tmp_path / "four", *batches) == 0
    (images, results), (other_images, other_results) = map(
        written, (tmp_path / "one", tmp_path / "four")
    )
    assert images == other_images
    for image in images["images"]:
        found, other = (by_image(x, image["id"]) for x in (results, other_results))
        np.testing.assert_allclose(found, other, rtol=1e-4, atol=1e-3)


def test_boxes_are_in_the_frame_of_the_upright_image(tool, place, tmp_path):
    image = Image.open(place / "unlabeled_0.png").crop((0, 0, 64, 40))
    image.save(tmp_path / "1.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # lies on its side: to be turned clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "2.png", exif=exif)
    assert run(tool, place, tmp_path / "out", "--input", tmp_path) == 0
    images, results = written(tmp_path / "out")
    assert [(x["height"], x["width"]) for x in images["images"]] == [(40, 64)] * 2
    assert len(by_image(results, 1)) > 0
    np.testing.assert_array_equal(by_image(results, 1), by_image(results, 2))


def test_unreadable_files_are_set_aside_and_nothing_else_is_lost(tool, place, tmp_path, capsys):
    photos = tmp_path / "photos/deep"
    photos.mkdir(parents=True)
    for i in range(3):
        shutil.copy(place / f"unlabeled_{i}.png", photos / f"{i}.png")
    (photos / "1.png").write_bytes(b"no image")
    (tmp_path / "clip.mp4").write_bytes(b"no video")
    sources = ("--input", tmp_path / "clip.mp4", photos.parent, "--batch-size", "2")
    assert run(tool, place, tmp_path / "out", *sources) == 0
    images, results = written(tmp_path / "out")
    names = [str(photos / "1.png"), str(tmp_path / "clip.mp4")]
    assert images["info"]["unreadable"] == names
    assert [(x["id"], x["file_name"]) for x in images["images"]] == [
        (1, str(photos / "0.png")),
        (3, str(photos / "2.png")),
    ]
    assert {x["image_id"] for x in results} == {1, 3}
    printed = capsys.readouterr().out
    assert all(name in printed for name in names) and "Unreadable: 2" in printed


def test_a_run_without_a_readable_file_fails(tool, place, tmp_path):
    (tmp_path / "1.png").write_bytes(b"no image")
    assert run(tool, place, tmp_path / "out", "--input", tmp_path / "1.png") == 1
    assert written(tmp_path / "out")[1] == []


def test_each_image_has_a_picture_that_is_named_after_it(tool, place, tmp_path):
    shutil.copy(place / "unlabeled_0.png", tmp_path / "a photo.png")
    shutil.copy(place / "unlabeled_1.png", tmp_path / "b.png")
    sources = ("--input", tmp_path / "a photo.png", tmp_path / "b.png")
    assert run(tool, place, tmp_path / "out", *sources, *FEW, pictures=True) == 0
    pictures = sorted((tmp_path / "out/pictures").iterdir())
    assert [x.name for x in pictures] == ["000001_a_photo.jpg", "000002_b.jpg"]
    plain = Image.open(tmp_path / "b.png").resize(Image.open(pictures[1]).size)
    drawn = np.asarray(Image.open(pictures[1])).astype(int) - np.asarray(plain.convert("RGB"))
    assert (abs(drawn).max(axis=2) > 100).mean() > 0.01


@pytest.mark.parametrize(
    ("rate", "written_rate"),
    [
        *((119.913, 119.91), (29.97, 29.97), (959.04, 959.0)),
        *((90000.0, 25.0), (0.0, 25.0), (float("nan"), 25.0)),
    ],
)
def test_any_rate_of_frames_is_written(tmp_path, rate, written_rate):
    output = PredictionOutput(tmp_path / "out", NAMES)
    frame = np.zeros((48, 64, 3), np.uint8)
    with output.video("clip.avi", 1, (48, 64), rate) as writer:
        for _ in range(3):
            writer.write(frame)
    frames, found = read_video(tmp_path / "out/videos/000001_clip.mp4")
    assert len(frames) == 3 and found == pytest.approx(written_rate, abs=0.01)


def test_a_video_that_cannot_be_drawn_keeps_its_detections(tool, place, tmp_path, monkeypatch):
    write_video(tmp_path / "clip.mp4", [np.full((48, 64, 3), 90, np.uint8)] * 2)
    monkeypatch.setattr(prediction_output, "_CODEC", "none")
    options = ("--input", tmp_path / "clip.mp4", *FEW)
    assert run(tool, place, tmp_path / "out", *options, pictures=True) == 0
    images, results = written(tmp_path / "out")
    assert len(images["images"]) == 2 and results
    assert not list((tmp_path / "out").rglob("*.mp4"))


def test_weights_of_another_model_are_refused(tool, place, tmp_path):
    for key, value in (("MODEL.ROI_HEADS.NUM_CLASSES", 5), ("MODEL.MASK_ON", True)):
        with pytest.raises(ValueError, match=r"weights\.pth lacks .*Set MODEL\.WEIGHTS"):
            run(tool, place, tmp_path / "out", key, value)


def test_a_video_gives_detections_of_each_frame_and_a_video(tool, place, tmp_path):
    rng = np.random.default_rng(0)
    write_video(
        tmp_path / "clip.mp4",
        [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(4)],
    )
    frames, _ = read_video(tmp_path / "clip.mp4")
    keys = (*FEW[2:], "INPUT.MIN_SIZE_TEST", "48")
    sources = ("--input", place / "unlabeled_0.png", tmp_path / "clip.mp4")
    options = (*sources, "--batch-size", "3", *keys)
    assert run(tool, place, tmp_path / "out", *options, pictures=True) == 0
    images, results = written(tmp_path / "out")
    assert [(x["id"], x.get("frame_index")) for x in images["images"]] == [
        *((1, None), (2, 0), (3, 1), (4, 2), (5, 3)),
    ]
    assert images["images"][1]["file_name"] == str(tmp_path / "clip.mp4")
    model = detector(place, keys)
    for image_id, frame in enumerate(frames, 2):
        expected, _ = detections(model, frame)
        found = by_image(results, image_id)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    drawn, rate = read_video(tmp_path / "out/videos/000002_clip.mp4")
    assert [x.shape for x in drawn] == [(48, 64, 3)] * 4 and rate == 12.5
    assert [x.name for x in (tmp_path / "out/videos").iterdir()] == ["000002_clip.mp4"]


def test_masks_are_run_length_codes_of_the_image(tool, tmp_path):
    write_config(tmp_path, MODEL__MASK_ON=True, **NARROW)
    model = tiny_model(**NARROW, MODEL__MASK_ON=True).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "weights.pth")
    image = tmp_path / "unlabeled_0.png"
    assert run(tool, tmp_path, tmp_path / "out", "--input", image, *FEW, pictures=True) == 0
    _, results = written(tmp_path / "out")
    _, expected = detections(model, np.asarray(Image.open(image))[:, :, ::-1])
    assert len(results) == 5
    for entry, mask in zip(results, expected.pred_masks[:5].numpy(), strict=True):
        np.testing.assert_array_equal(mask_util.decode(entry["segmentation"]), mask)
    assert len(list((tmp_path / "out/pictures").iterdir())) == 1


@pytest.fixture
def both(tmp_path):
    """A checkpoint of a student and a teacher that differ, with config and sets."""
    folder, _ = label_place(tmp_path)
    student, teacher = (tiny_model(seed, **NARROW).eval() for seed in (1, 2))
    SoftTeacherCheckpointer(student, str(folder), teacher=teacher).save("model_final")
    return folder, {"student": student, "teacher": teacher}


@pytest.mark.parametrize("which", [None, "student", "teacher"])
def test_of_a_checkpoint_the_teacher_is_taken_or_what_is_asked_for(tool, both, tmp_path, which):
    folder, models = both
    image = folder / "unlabeled_0.png"
    options = ["--weights", folder / "model_final.pth", "--input", image]
    options += ["--model", which] if which else []
    assert run(tool, folder, folder / "out", *options) == 0
    expected, _ = detections(models[which or "teacher"], np.asarray(Image.open(image))[:, :, ::-1])
    found = by_image(written(folder / "out")[1], 1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_an_exported_model_knows_its_classes_without_the_sets(tool, both, tmp_path):
    folder, models = both
    elsewhere = folder / "elsewhere"
    cfg = load_config(str(folder / "config.yaml"))
    export_model(folder / "model_final.pth", "student", cfg, elsewhere / "mine.pth")
    image = shutil.copy(folder / "unlabeled_0.png", elsewhere / "1.png")
    for path in folder.glob("*.json"):
        path.unlink()
    options = ("--weights", elsewhere / "mine.pth", "--input", image)
    assert run(tool, folder, elsewhere / "out", *options) == 0
    images, results = written(elsewhere / "out")
    assert images["categories"] == NAMES
    expected, _ = detections(models["student"], np.asarray(Image.open(image))[:, :, ::-1])
    np.testing.assert_allclose(by_image(results, 1), expected, rtol=1e-4, atol=1e-3)


def test_classes_that_nothing_names_are_numbered_with_a_warning(tool, tmp_path, caplog):
    torch.save({"model": tiny_model(**NARROW).state_dict()}, tmp_path / "weights.pth")
    (tmp_path / "config.yaml").write_text(tiny_config(**NARROW).dump())
    Image.new("RGB", (64, 64)).save(tmp_path / "1.png")
    assert run(tool, tmp_path, tmp_path / "out", "--input", tmp_path / "1.png") == 0
    assert written(tmp_path / "out")[0]["categories"] == [
        {"id": k, "name": f"class {k}"} for k in (1, 2, 3)
    ]
    assert "names of the classes are not known: DATASETS.TRAIN is empty" in caplog.text


def test_an_interrupted_run_leaves_no_results(tool, place, tmp_path, monkeypatch):
    add, seen = tool.PredictionOutput.add, []

    def add_or_stop(self, path, detected, **facts):
        seen.append(path)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return add(self, path, detected, **facts)

    monkeypatch.setattr(tool.PredictionOutput, "add", add_or_stop)
    assert run(tool, place, tmp_path / "out", *FEW, pictures=True) == tool.INTERRUPTED
    assert [x.name for x in (tmp_path / "out").iterdir()] == ["pictures"]
    assert len(list((tmp_path / "out/pictures").iterdir())) == 2


def test_a_folder_that_holds_something_is_left_as_it_is(tool, place, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is there and not empty; name a new folder"):
        run(tool, place, tmp_path)
    assert [x.name for x in tmp_path.iterdir()] == ["notes.txt"]


def test_the_model_that_is_asked_for_must_be_there(tool, place, tmp_path):
    with pytest.raises(ValueError, match="leave --model out"):
        run(tool, place, tmp_path / "out", "--model", "student")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--score-threshold", "1"], "it must lie in 0 to 1"),
        (["--weights", "nowhere.pth"], "there is no file nowhere.pth"),
        (["--config-file", "nowhere.yaml"], "there is no file nowhere.yaml"),
        (["INPUT.FORMAT"], "KEY VALUE pairs expected"),
    ],
)
def test_a_wrong_command_line_is_refused_with_its_reason(
    tool, place, tmp_path, options, message, capsys
):
    with pytest.raises(SystemExit):
        run(tool, place, tmp_path / "out", "--device", "cpu", *options)
    assert message in capsys.readouterr().err
