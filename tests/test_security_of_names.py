"""Names in data become neither code of a page, nor commands of a terminal, nor paths of files."""

import importlib.util
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from marked_images import SCENES, change_annotations, marked_config, write_marked_set

# For a class and for an image, whose slash makes a folder of the first half.
EVIL = "<script>alert(1)</script>\"'"


def tool(name: str):
    path = Path(__file__).parents[1] / f"tools/{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Page(HTMLParser):
    """Tags, attributes and text as a browser finds them."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(document)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def assert_harmless(document: str) -> Page:
    page = Page(document)
    known = {"html", "head", "meta", "title", "style", "body", "main", "section", "div", "span"}
    known |= {"h1", "h2", "h3", "p", "b", "pre", "details", "summary", "figure", "figcaption"}
    known |= {"img", "table", "thead", "tbody", "tr", "th", "td"}
    assert set(page.tags) <= known
    names = {name for name, _ in page.attributes}
    assert names <= {"lang", "charset", "name", "content", "http-equiv", "class", "style", "src",
                     "alt", "scope", "open"}  # fmt: skip
    return page


@pytest.fixture
def evil_data(tmp_path):
    """Labeled and unlabeled sets, under `data`, whose classes and images have evil names."""
    folder = tmp_path / "data"
    (folder / "<script>alert(1)<").mkdir(parents=True)
    cfg = marked_config(folder)
    names = [f"{EVIL}{i}.png" for i in range(len(SCENES))]
    sets = [write_marked_set(folder, name, names) for name in ("labeled", "unlabeled")]
    cfg.DATASETS.CUSTOM = sets
    cfg.DATASETS.TRAIN, cfg.DATASETS.UNLABELED = (sets[0][0],), (sets[1][0],)

    def rename(content):
        for category in content["categories"]:
            category["name"] = EVIL + category["name"]

    for _, file, _ in sets:
        change_annotations(file, rename)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    return tmp_path


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_the_page_of_training_images_escapes_names_and_writes_where_it_is_told_to(evil_data):
    before = files_below(evil_data)
    output = evil_data / "output"
    arguments = ["--config-file", evil_data / "config.yaml", "--output", output, "--num", 4]
    tool("visualize_data").main([*map(str, arguments), "--html", str(output / "page.html")])
    page = assert_harmless((output / "page.html").read_text())
    assert f"{EVIL}0.png" in page.text and f"{EVIL}box" in page.text
    assert any(name == "alt" and EVIL in value for name, value in page.attributes)
    written = files_below(evil_data) - before
    assert written and {path.parent for path in written} == {output}


def test_the_report_on_data_escapes_names_and_writes_where_it_is_told_to(
    evil_data, capsys, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(evil_data / "cache"))
    for path in files_below(evil_data / "data"):
        # Two unreadable images, whose names come with an error message.
        if path.name.endswith("1.png"):
            path.write_text("no image")
    before = files_below(evil_data)
    output = evil_data / "output"
    arguments = ["--config-file", str(evil_data / "config.yaml"), "--output", str(output)]
    assert tool("check_dataset").main([*arguments, "--workers", "1"]) == 1
    page = assert_harmless((output / "report.html").read_text())
    assert f"{EVIL}box" in page.text
    assert f"{EVIL}1.png: it is in none of the formats" in page.text
    assert {path.parent for path in files_below(evil_data) - before} == {output}


def test_the_terminal_gets_no_control_characters_from_names(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name = "\x1b]0;owned\x07\x1b[2J.png"
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    image = {"id": 1, "file_name": name, "width": 20, "height": 20}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81}
    content = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    arguments = ["--annotations", tmp_path / "a.json", "--images", tmp_path, "--workers", "1"]
    tool("check_dataset").main([*map(str, arguments), "--output", str(tmp_path / "output")])
    printed = capsys.readouterr().out
    assert "\\x1b]0;owned" in printed and "\x1b" not in printed
