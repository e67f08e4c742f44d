"""README: what its commands name exists, and its published numbers are those of the configs."""

import argparse
import configparser
import functools
import glob
import importlib.util
import re
import runpy
import shlex
import sys
from itertools import groupby, pairwise
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from torch.distributed.run import get_args_parser

from soft_teacher import add_soft_teacher_config, load_config
from soft_teacher.data.digits import write_dataset

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def read_commands() -> list[list[str]]:
    """The words of every indented command; what stands on both sides of && are two."""
    found, pending = [], ""
    for line in re.findall(r"^ {4}(.*)$", README.replace("\\\n", " "), re.MULTILINE):
        pending += line + "\n"
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quotation goes on in the next line
            continue
        pending = ""
        found += [list(group) for is_and, group in groupby(words, "&&".__eq__) if not is_and]
    assert not pending
    return found


COMMANDS = read_commands()


def python_calls() -> list[tuple[str, ...]]:
    """Script and arguments of what is run by python, by torchrun, or by another script."""
    calls = [tuple(words[1:]) for words in COMMANDS if words[0] == "python"]
    torchrun = [words for words in COMMANDS if words[0] == "torchrun"]
    calls += [tuple(words[words.index("train_net.py") :]) for words in torchrun]
    suites = [call for call in calls if call[0] == "tools/slurm_suite.py"]
    calls += [("tools/run_suite.py", *call[call.index("--") + 1 :]) for call in suites]
    return calls


def options(words: list[str], name: str) -> list[str]:
    """The values that follow an option."""
    return [value for option, value in pairwise(words) if option == name]


class ParsedError(Exception):
    """A program has read its command line, and would go on to work."""


def parse(script: str, arguments: tuple[str, ...], monkeypatch) -> argparse.Namespace:
    """What the program's own parser makes of the arguments; no option may be shortened."""
    original = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, *args):
        parser.allow_abbrev = False
        raise ParsedError(original(parser, *args))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(ParsedError) as stopped:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    return stopped.value.args[0]


def test_all_commands_are_read():
    programs = {words[0] for words in COMMANDS}
    assert programs == {"python", "torchrun", "make", "pip", "export", "."}
    assert len(python_calls()) >= 10
    # Indented blocks alone are looked at.
    assert "```" not in README


@pytest.mark.parametrize("call", python_calls(), ids=lambda call: Path(call[0]).stem)
def test_scripts_take_their_options_and_configs_their_keys(call, monkeypatch):
    script, *arguments = call
    if "slurm" in script:
        pytest.importorskip("submitit")
    args = parse(script, tuple(arguments), monkeypatch)
    config = str(getattr(args, "config_file", None) or "")
    if config.startswith("configs/"):
        load_config(str(ROOT / config), getattr(args, "opts", ()))


def test_torchrun_takes_its_options():
    (words,) = [words for words in COMMANDS if words[0] == "torchrun"]
    parser = get_args_parser()
    parser.allow_abbrev = False
    assert parser.parse_args(words[1:]).training_script == "train_net.py"


def test_configs_are_there_or_written_by_a_command_above():
    written = set()
    for words in COMMANDS:
        for word in words:
            assert not word.endswith(".yaml") or word in written or (ROOT / word).is_file(), word
        # Beside weights, the tools write their config.
        written |= {str(Path(x).with_suffix(".yaml")) for x in options(words, "--output")}


def test_targets_of_make_and_extras_of_pip_are_there():
    inline = [x.split() for x in re.findall(r"`(make [^`]+)`", README)]
    targets = {words[1] for words in [*inline, *COMMANDS] if words[0] == "make"}
    assert targets <= set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.M))
    (extras,) = re.findall(r'pip install -e "\.\[(.*)\]"', README)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert set(extras.split(",")) <= set(setup["options.extras_require"])


def test_every_config_key_that_is_named_exists():
    cfg = get_cfg()
    add_soft_teacher_config(cfg)
    keys = set(re.findall(r"\b[A-Z][A-Z_]*(?:\.[A-Z0-9_]+)+\b", README))
    assert "DATASETS.FOLD" in keys
    for key in keys:
        functools.reduce(lambda node, name: node[name], key.split("."), cfg)


def test_what_the_commands_look_at_is_what_the_demo_leaves(tmp_path, monkeypatch):
    for package in ("mlxtend", "skimage", "sklearn"):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("demo", ROOT / "tools/demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    monkeypatch.setattr(demo, "complete_visibly", lambda training: None)
    training = demo.train(demo.parse_args([]), seed=0, digest="")["soft_teacher"]
    write_dataset(demo.DATA, dict.fromkeys(("labeled", "unlabeled", "val"), 1), demo.DATA_SEED)

    named = {
        x for words in COMMANDS for x in words if x.startswith(("output/demo", "output/digits"))
    }
    named -= {x for words in COMMANDS for x in options(words, "--output")}
    of_checkpoints = {x for x in named if x.endswith(".pth")}
    # The second is what tools/export_model.py makes of the first.
    assert of_checkpoints == {
        str(training.output_dir / f"model_final{suffix}.pth") for suffix in ("", "_teacher")
    }
    of_data = named - of_checkpoints
    assert len(of_data) == 3
    for pattern in of_data:
        assert glob.glob(pattern), pattern


def published_of(recipe: str) -> dict[str, str] | None:
    """Source -> AP, from the first line of a recipe; None if there is no such recipe."""
    file = ROOT / f"configs/coco/{recipe}.yaml"
    if not file.is_file():
        return None
    first_line = file.read_text().splitlines()[0]
    numbers = re.findall(r"([\d.]+)(?: ± [\d.]+)? \((official code|paper)", first_line)
    return {source: number for number, source in numbers}


def test_the_table_and_the_recipes_name_the_same_published_numbers():
    row = r"^\| [^|]+ \| (.+) \| (.+) \| (.+) \| not run \| `(soft_teacher_.+)` \|$"
    rows = re.findall(row, README, re.MULTILINE)
    shares = ("R_50_FPN_1pct", "R_50_FPN_5pct", "R_50_FPN_10pct")
    full = ("R_50_FPN_full_720k", "R_50_FPN_full_1440k", "R_101_FPN_full_1080k")
    assert [name for *_, name in rows] == [f"soft_teacher_{x}" for x in (*shares, *full)]
    for baseline, paper, official, name in rows:
        said = {"paper": paper, "official code": official}
        assert published_of(name) == {k: v for k, v in said.items() if v != "none"}
        # The baseline of ResNet-101 has a shorter schedule; for 1,440k iterations there is none.
        other = name.replace("soft_teacher", "supervised").replace("1080k", "720k")
        assert published_of(other) == (None if baseline == "none" else {"paper": baseline})
