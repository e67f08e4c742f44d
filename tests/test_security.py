"""Configs and checkpoints that strangers give us run no code, and neither does our own code."""

import ast
import codecs
import collections
import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.engine import default_argument_parser

import train_net
from soft_teacher import load_config
from soft_teacher.engine import SoftTeacherCheckpointer, load_models
from soft_teacher.engine.export import read_model
from soft_teacher.modeling.backbones.timm_weights import load_timm_weights
from soft_teacher.safe_loading import check_pickle, load_arrays, load_tensors
from tiny import tiny_config
from tiny_training import NARROW, write_config

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    [*(ROOT / "projects").rglob("*.py"), *(ROOT / "tools").rglob("*.py"), ROOT / "train_net.py"]
)


class Attack:
    """Unpickled, it makes a file."""

    def __init__(self, proof: Path) -> None:
        self._proof = str(proof)

    def __reduce__(self):
        return open, (self._proof, "w")


@pytest.fixture
def proof(tmp_path):
    """A file that exists if somebody's code ran, and is looked for at the end of each test."""
    path = tmp_path / "attacked"
    yield path
    assert not path.exists()


def tool(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_attacks_of_these_tests_would_work(tmp_path):
    for name, attack in {
        "yaml": lambda proof: yaml.unsafe_load(yaml_attack(proof)),
        "pickle": lambda proof: pickle.loads(pickle.dumps(Attack(proof))),
    }.items():
        attack(tmp_path / name)
        assert (tmp_path / name).exists()


# --- configs


def yaml_attack(proof: Path) -> str:
    return f"!!python/object/apply:os.system ['touch {proof}']"


def run_tool(name: str):
    def run(path: Path) -> None:
        arguments = ["--config-file", str(path)]
        if name == "export_model":
            arguments = [str(path), "--model", "teacher", *arguments]
        tool(name).main(arguments)

    return run


def run_training(path: Path) -> None:
    train_net.main(default_argument_parser().parse_args(["--config-file", str(path)]))


READERS = {
    "load_config": lambda path: load_config(str(path)),
    "train_net": run_training,
    **{name: run_tool(name) for name in ("check_dataset", "visualize_data", "export_model")},
}


@pytest.mark.parametrize("form", ["the file", "its base", "one of its bases", "the base's base"])
@pytest.mark.parametrize("reader", READERS)
def test_a_config_with_a_python_tag_is_refused(tmp_path, proof, reader, form):
    (tmp_path / "evil.yaml").write_text(f"OUTPUT_DIR: {yaml_attack(proof)}\n")
    (tmp_path / "fine.yaml").write_text("SEED: 1\n")
    (tmp_path / "middle.yaml").write_text("_BASE_: evil.yaml\n")
    config = tmp_path / "config.yaml"
    config.write_text(
        {
            "the file": f"SEED: {yaml_attack(proof)}\n",
            "its base": "_BASE_: evil.yaml\n",
            "one of its bases": "_BASE_: [fine.yaml, evil.yaml]\n",
            "the base's base": "_BASE_: middle.yaml\n",
        }[form]
    )
    culprit = "config" if form == "the file" else "evil"
    with pytest.raises(ValueError, match=rf"(?s)config\.yaml.*no plain YAML.*{culprit}\.yaml"):
        READERS[reader](config)


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch {}']",
        "__import__('os').system('touch {}')",
        "[x for x in [open('{}', 'w')]]",
        "{{open('{}', 'w')}}",
    ],
)
def test_values_of_the_command_line_and_of_configs_are_never_evaluated(tmp_path, proof, value):
    value = value.format(proof)
    config = tmp_path / "config.yaml"
    config.write_text("SEED: 1\n")
    # A text stays the text that it is; where something else is expected it is refused.
    assert load_config(str(config), ["OUTPUT_DIR", value]).OUTPUT_DIR == value
    with pytest.raises(ValueError, match="Type mismatch"):
        load_config(str(config), ["SOLVER.MAX_ITER", value])
    config.write_text(yaml.safe_dump({"OUTPUT_DIR": value}))
    assert load_config(str(config)).OUTPUT_DIR == value
    config.write_text(yaml.safe_dump({"SOLVER": {"MAX_ITER": value}}))
    with pytest.raises(ValueError, match="Type mismatch"):
        load_config(str(config))


def test_a_config_cannot_have_detectron2_unpickle_proposals(tmp_path, proof):
    (tmp_path / "proposals.pkl").write_bytes(pickle.dumps(Attack(proof)))
    config = write_config(tmp_path)
    files = repr((str(tmp_path / "proposals.pkl"),))
    keys = ["MODEL.LOAD_PROPOSALS", "True", "DATASETS.PROPOSAL_FILES_TEST", files]
    arguments = ["--config-file", str(config), "--eval-only", *keys]
    with pytest.raises(ValueError, match=r"MODEL\.LOAD_PROPOSALS is True.*set it to False"):
        train_net.main(default_argument_parser().parse_args(arguments))


# --- checkpoints


@pytest.fixture(params=["bad.pth", "legacy.pth", "bad.pkl", "bad.pyth"])
def attack(request, tmp_path, proof):
    """A file of weights with something in it that makes a file when it is unpickled."""
    path = tmp_path / request.param
    content = {"model": {}, "teacher": {}, "model_state": {}, "x": Attack(proof)}
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=path.stem != "legacy")
    return path


def test_weights_that_run_code_are_refused_by_the_checkpointer(attack, tmp_path):
    for method in ("load", "load_training"):
        checkpointer = SoftTeacherCheckpointer(torch.nn.Linear(1, 1), str(tmp_path))
        with pytest.raises(ValueError, match=r"could run code|not a safe file"):
            getattr(checkpointer, method)(str(attack))


def test_weights_that_run_code_are_refused_by_an_evaluation(attack, tmp_path):
    cfg = tiny_config(
        MODEL__WEIGHTS=str(attack), OUTPUT_DIR=str(tmp_path), DATASETS__TEST=(), **NARROW
    )
    with pytest.raises(ValueError, match=r"could run code|not a safe file"):
        load_models(cfg)


def test_weights_that_run_code_are_refused_by_a_training(attack, tmp_path):
    config = write_config(tmp_path, **NARROW)
    arguments = ["--config-file", str(config), "MODEL.WEIGHTS", str(attack)]
    arguments += ["OUTPUT_DIR", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=r"could run code|not a safe file"):
        train_net.main(default_argument_parser().parse_args(arguments))


# A training saves archives by this name alone.
@pytest.mark.parametrize("attack", ["bad.pth"], indirect=True)
def test_a_checkpoint_that_runs_code_is_refused_by_a_resumed_training(attack, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "model_final.pth").write_bytes(attack.read_bytes())
    (output / "last_checkpoint").write_text("model_final.pth")
    config = write_config(tmp_path, **NARROW)
    arguments = ["--config-file", str(config), "--resume", "OUTPUT_DIR", str(output)]
    with pytest.raises(ValueError, match=r"could run code|not a safe file"):
        train_net.main(default_argument_parser().parse_args(arguments))


def test_weights_that_run_code_are_refused_by_the_export_and_by_timm(attack, tmp_path):
    (tmp_path / "config.yaml").write_text(tiny_config().dump())
    with pytest.raises(ValueError, match=rf"{attack.stem}.*could run code"):
        read_model(attack, "student")
    with pytest.raises(ValueError, match=rf"{attack.stem}.*could run code"):
        tool("export_model").main([str(attack), "--model", "teacher"])
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnet18", features_only=True)
    with pytest.raises(ValueError, match=r"MODEL\.TIMM\.WEIGHTS.*not a (safe )?file of"):
        load_timm_weights(net, "resnet18", str(attack), 3)


class Call:
    """Unpickled, it calls a function of numpy's, and gives the result a state if there is one."""

    def __init__(self, function, args, *state) -> None:
        self._call = function, args, *state

    def __reduce__(self):
        return self._call


FLOAT = np.dtype("f4")
STATE = (3, "<", None, None, None, -1, -1, 0)
REBUILD = np.zeros(1, "f4").__reduce__()[0]
NUMBER = np.float32(1).__reduce__()[0]


@pytest.mark.parametrize(
    "content",
    [
        # numpy's own dtype, which all arrays share, would get another state.
        Call(np.dtype, ("f4", False, False), STATE),
        Call(np.dtype, ("f4",)),
        # Numbers that numpy would take for the addresses of objects.
        Call(np.dtype, ("f4", False, True), (*STATE[:-1], 63)),
        Call(np.dtype, ("V8", False, True), (3, "|", None, None, None, 8, 1, 63)),
        np.array([None]),
        np.zeros(1, [("a", "f4")]),
        # More or fewer numbers than there are bytes.
        Call(REBUILD, (np.ndarray, (0,), b"b"), (1, (100,), FLOAT, False, bytes(4))),
        Call(REBUILD, (np.ndarray, (10**9,), b"b")),
        Call(REBUILD, (collections.OrderedDict, (0,), b"b")),
        Call(NUMBER, (FLOAT, bytes(3))),
        Call(np.ndarray, ((10,), FLOAT, bytes(40))),
        Call(codecs.encode, ("text", "zip")),
    ],
)
def test_a_pickle_that_would_break_numpys_memory_is_refused(tmp_path, content):
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": content}}, protocol=2))
    with pytest.raises(ValueError, match=r"bad\.pkl is not a safe file of weights"):
        check_pickle(str(path))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["f2", "f4", ">f8", "i8", "u1", "?", "c8"])
def test_arrays_and_numbers_of_every_kind_and_shape_are_no_danger(tmp_path, protocol, dtype):
    arrays = [np.ones(shape, dtype) for shape in ((), (0,), (3,), (2, 0, 4), (2, 3, 4))]
    arrays += [arrays[-1].T, np.ones(1, dtype)[0], arrays[-1]]
    content = collections.OrderedDict(model=arrays, text="ä", more=[b"x", 1.5, None, True, 2**70])
    path = tmp_path / "good.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    check_pickle(str(path))


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_damage_to_weights_gives_a_value_error_with_the_name_or_nothing(tmp_path, suffix):
    path = tmp_path / f"damaged.{suffix}"
    if suffix == "pkl":
        content = {"model": {"a": np.zeros(3, "f4")}, "n": 1}
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        content = {"model": {"a": torch.zeros(3)}, "n": 1}
        torch.save(content, path, _use_new_zipfile_serialization=False)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    random, refused = np.random.default_rng(0), 0
    # Not the code of a memo of any size, for which gigabytes would be taken.
    values = np.delete(np.arange(256, dtype=np.uint8), ord("r"))
    for _ in range(300):
        damaged = whole.copy()
        damaged[random.integers(0, len(whole), 3)] = random.choice(values, 3)
        path.write_bytes(damaged[: random.integers(1, 2 * len(whole))].tobytes())
        try:
            (check_pickle if suffix == "pkl" else load_tensors)(str(path))
        except ValueError as error:
            refused += 1
            assert path.name in str(error)
    assert refused > 100


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_arrays_of_a_pickle_are_those_that_were_written(tmp_path, protocol):
    arrays = {
        "big-endian": np.arange(6, dtype=">f4").reshape(2, 3),
        "by columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "empty": np.zeros((0, 2), np.int64),
        "single": np.full((), 3, np.float16),
        "bits": np.array([True, False]),
    }
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}, protocol=protocol))
    found = load_arrays(str(path))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].numpy().dtype == array.dtype.newbyteorder("=")
        assert np.array_equal(found[name].numpy(), array)


# --- the sources themselves

# What runs text or bytes, by the last two parts of the called name.
FORBIDDEN = {
    *("eval", "exec", "compile", "__import__"),
    *(f"{x}.{y}" for x in ("pickle", "cloudpickle", "marshal") for y in ("load", "loads")),
    *(f"yaml.{x}" for x in ("load", "load_all", "unsafe_load", "full_load")),
    *("os.system", "os.popen", "torch.jit.load", "jit.load", "LazyConfig.load"),
    *("shelve.open", "joblib.load", "DefaultPredictor", "DetectionCheckpointer"),
}


def called_name(node: ast.Call) -> str:
    """The last two parts of what is called: "eval", "yaml.load", "parser.error"."""
    if isinstance(node.func, ast.Name):
        return node.func.id
    if isinstance(node.func, ast.Attribute):
        owner = node.func.value
        owner = getattr(owner, "id", getattr(owner, "attr", ""))
        return f"{owner}.{node.func.attr}"
    return ""


def complaint(node: ast.Call) -> str | None:
    """What a call has that could run what a stranger wrote; None for nothing."""
    name = called_name(node)
    given = {x.arg: x.value.value for x in node.keywords if isinstance(x.value, ast.Constant)}
    if name in FORBIDDEN:
        return name
    if name in ("torch.load", "load_state_dict") and given.get("weights_only") is not True:
        return f"{name} without weights_only=True"
    if name.endswith("merge_from_file") and given.get("allow_unsafe") is not False:
        return f"{name} without allow_unsafe=False"
    return next((f"{x}=True" for x in ("allow_pickle", "shell") if given.get(x)), None)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_evaluates_text_or_unpickles(path):
    calls = [x for x in ast.walk(ast.parse(path.read_text())) if isinstance(x, ast.Call)]
    assert not [f"line {x.lineno}: {complaint(x)}" for x in calls if complaint(x)]


@pytest.mark.parametrize(
    "text",
    [
        "eval(x)",
        "pickle.load(f)",
        "yaml.load(f)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "subprocess.run(x, shell=True)",
        "os.system(x)",
        "cfg.merge_from_file(x)",
        "load_state_dict(x)",
    ],
)
def test_the_search_of_the_sources_finds_what_it_looks_for(text):
    assert complaint(ast.parse(text).body[0].value) is not None
