"""Commands, flags, keys, files, functions and links in the documents exist, and Python in them runs."""

import copy
import importlib
import json
import re
import shlex
import sys
import tomllib
from functools import partial
from pathlib import Path
from unittest.mock import create_autospec, patch

import cv2
import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from cfinet_jax import main, training
from cfinet_jax.errors import UserError
from cfinet_jax.metrics import __main__ as metrics_command
from cfinet_jax.metrics.protocols import PROTOCOLS
from cfinet_jax.models.detector import build_detector
from cfinet_jax.models.proposals import PROPOSAL_NETWORKS
from cfinet_jax.ops.imitation import QUALITIES
from cfinet_jax.preparation import __main__ as prepare
from configs import sodad
from tests import tiny

# ml_collections still loads configurations by a method that Python is about to remove.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "data/README", "benchmarks/README")),
    *sorted((ROOT / "docs").glob("*.md")),
]
TEXTS = {str(path.relative_to(ROOT)): path.read_text() for path in DOCUMENTS}
MAIN_JOB = ["--config=configs/scenes.py", "--workdir=runs/scenes"]  # what run.sh adds where it is not given


WHOLE = "docs/adding_a_proposal_network.md"  # its blocks follow on each other


def blocks_of(language: str, text: str) -> list[str]:
    """The fenced blocks of a language in a document."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def blocks(language: str) -> list:
    """Return the blocks of all documents except `WHOLE`, whose blocks form one program."""
    found = [(name, block) for name, text in TEXTS.items() if name != WHOLE for block in blocks_of(language, text)]
    return [pytest.param(block, id=f"{name}-{number}") for number, (name, block) in enumerate(found)]


def quoted() -> list[str]:
    """Everything between backticks, outside of fenced blocks."""
    texts = (re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE) for text in TEXTS.values())
    return sorted({word for text in texts for word in re.findall(r"`([^`\n]+)`", text)})


def commands(block: str) -> list[list[str]]:
    """The words of every command."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


@pytest.fixture(autouse=True)
def in_root(monkeypatch):
    """Commands are given in the repository's folder."""
    monkeypatch.chdir(ROOT)


def check(words: list[str], monkeypatch) -> None:
    """A command exists and takes these arguments; it is not run."""
    match words:
        case ["./run.sh", "test", *rest]:
            assert all(Path(argument).exists() for argument in rest if not argument.startswith("-"))
        case ["./run.sh"]:
            check(["python", "-m", "cfinet_jax.main", *MAIN_JOB], monkeypatch)
        case ["./run.sh", first, *rest] if first.startswith("--"):
            given = {word.partition("=")[0] for word in (first, *rest)}
            of_a_run = {f"--mode={name}" for name, mode in main.MODES.items() if "config" in mode.without} & {
                first,
                *rest,
            }
            if of_a_run and not any(word.startswith("--config.") for word in given):
                given.add("--config")
            defaults = [word for word in MAIN_JOB if word.partition("=")[0] not in given]
            check(["python", "-m", "cfinet_jax.main", *defaults, first, *rest], monkeypatch)
        case ["./run.sh", *rest]:
            check(rest, monkeypatch)
        case ["python", "-m", "cfinet_jax.main", *rest]:
            check_flags(rest, monkeypatch)
        case ["python", "-m", "cfinet_jax.metrics", *rest]:
            metrics_command.parser().parse_args(rest)
        case ["python", "-m", module, *rest] if module.startswith("benchmarks."):
            arguments = importlib.import_module(module).parser().parse_args(rest)
            if "command" in arguments:
                check(arguments.command, monkeypatch)
        case ["python", "data/prepare.py", *rest]:
            built = []
            monkeypatch.setattr(prepare, "prepare", built.append)
            monkeypatch.setattr(sys, "argv", ["prepare.py", *rest])
            assert prepare.main() == 0 and len(built) == 1
        case _:
            pytest.fail(f"not known here, so not checked: {shlex.join(words)}")


def check_flags(arguments: list[str], monkeypatch) -> None:
    """The flags of `cfinet_jax.main` in a set of their own: the configuration loads and its overrides apply."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    for flag in flags.FLAGS.get_flags_for_module(main):
        if not flag.name.startswith("config"):  # nor the overrides of the command before
            values[flag.name] = copy.deepcopy(flag)
    monkeypatch.setattr(sys, "argv", ["main", *arguments])  # where config_flags looks for overrides
    assert values(sys.argv) == ["main"]
    for name in ("config", "workdir"):
        assert values[name].value is not None or name in main.MODES[values.mode].without


@pytest.mark.parametrize("block", blocks("bash"))
def test_commands_exist(block, monkeypatch):
    assert (ROOT / "run.sh").stat().st_mode & 0o100
    for words in commands(block):
        check(words, monkeypatch)


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("./run.sh --config.dataset.nmae=x", AttributeError),
        ("./run.sh --config=configs/scenes.py:fast", UserError),
        ("./run.sh --wrokdir=runs/x", flags.UnrecognizedFlagError),
        ("./run.sh python data/prepare.py nothing --data_dir=prepared", AssertionError),
        ("./run.sh python -m benchmarks.nothing", ModuleNotFoundError),
        ("./run.sh python -m cfinet_jax.metrics --protocol=soda_d --annotations=a.json", UserError),
        ("./run.sh python -m benchmarks.job -- ./run.sh python data/prepare.py scenes", AssertionError),
        ("./run.sh test tests/nowhere", AssertionError),
        ("make", pytest.fail.Exception),
    ],
)
def test_commands_that_do_not_exist_are_noticed(command, error, monkeypatch):
    with pytest.raises(error):
        check(shlex.split(command), monkeypatch)


@pytest.mark.parametrize("block", blocks("python"))
def test_python_runs(block, trained, tmp_path, monkeypatch):
    """In a folder with a finished run and a picture."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "scenes").symlink_to(trained[0])
    cv2.imwrite(str(tmp_path / "picture.jpg"), np.zeros((40, 60, 3), np.uint8))
    monkeypatch.chdir(tmp_path)
    metrics = json.loads((tmp_path / "runs" / "scenes" / "metrics.json").read_text())
    monkeypatch.setattr(training, "train", create_autospec(training.train, return_value=metrics))  # takes too long
    with patch.dict(PROPOSAL_NETWORKS), patch.dict(PROTOCOLS), patch.dict(QUALITIES):  # where documents add rows
        exec(compile(block, "document", "exec"), {})


def test_a_proposal_network_is_added_as_the_page_says():
    """In fewer than 60 lines; it then learns and proposes like the others."""
    lines = "\n".join(blocks_of("python", TEXTS[WHOLE]))
    assert 40 < len(lines.splitlines()) < 60
    page: dict = {}
    with patch.dict(PROPOSAL_NETWORKS):
        exec(compile(lines, WHOLE, "exec"), page)
        assert PROPOSAL_NETWORKS["square"] is page["SquareRPN"]
        section = page["config"].detector
        tiny.shrink(section)
        detector = build_detector(section, 9)
    batch, key = tiny.batch(), jax.random.key(0)
    priorities = detector.draw_priorities(key, batch.index, tiny.SHAPE, tiny.OBJECTS)
    variables = jax.jit(partial(detector.init, method="losses"))(key, batch, None, priorities)

    @jax.jit
    def learn(params):
        def loss(params):
            losses, *_ = detector.apply(variables | {"params": params}, batch, None, priorities, method="losses")
            return sum(term.total.sum() / term.count.sum() for term in losses.values()), losses

        (_, losses), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda x, change: x - 0.01 * change, params, gradient), losses, gradient

    params, before, gradient = learn(variables["params"])
    assert {"proposals/objectness", "proposals/box"} <= before.keys()
    assert all(np.isfinite(x).all() and np.any(x) for x in jax.tree.leaves(gradient["proposal_network"]))
    for _ in range(20):
        params, after, _ = learn(params)
    assert after["proposals/objectness"].total.sum() < before["proposals/objectness"].total.sum()
    _, proposals = jax.jit(partial(detector.apply, method="detect"))(variables | {"params": params}, batch)
    assert proposals.valid.any() and np.isfinite(proposals.boxes).all()


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)#]+)\)", TEXTS[name]):
        assert target.startswith("https://") or (ROOT / name).parent.joinpath(target).exists(), target


def test_files_and_what_they_define_exist():
    """`folder/file.py` and `folder/file.py:Name.part`; for a configuration, what follows the colon is its variant."""
    paths = [word for word in quoted() if re.fullmatch(r"[\w./]+\.py(:[\w.,]+)?", word) and "NAME" not in word]
    assert len(paths) > 20
    for word in paths:
        path, _, name = word.partition(":")
        places = [base / path for base in (ROOT, ROOT / "cfinet_jax", ROOT / "data") if (base / path).exists()]
        assert places, word
        if not name:
            continue
        part = importlib.import_module(
            ".".join(places[0].relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        )
        if path.startswith("configs/"):
            assert part.get_config(name)
            continue
        for attribute in name.split("."):
            part = getattr(part, attribute)


def test_configuration_keys_exist():
    """Whole keys, and those of the table of ablations, below `detector`."""
    config = sodad.get_config()
    keys = [
        word for word in quoted() if re.fullmatch(r"(dataset|detector|optimizer|training|evaluation)\.[\w.]+", word)
    ]
    rows = re.findall(r"^\| .+? \| `([\w.]+)` \| `.+` \|$", TEXTS["docs/configuration.md"], re.MULTILINE)
    assert len(keys) > 8 and len(rows) == 10
    for key in [*keys, *(f"detector.{row}" for row in rows)]:
        part = config
        for name in key.split("."):
            assert name in part, key
            part = part[name]


def test_presets_are_as_the_table_says():
    rows = re.findall(
        r"^\| `(detector\.[\w.]+)` \| `(.+?)`.* \| `(.+?)`.* \| `.+` \|$", TEXTS["docs/fidelity.md"], re.MULTILINE
    )
    assert {key for key, _, _ in rows} == set(sodad.RELEASED)
    for variant, column in (("", 1), ("released", 2)):
        flat = sodad.get_config(variant)
        for row in rows:
            part = flat
            for name in row[0].split("."):
                part = part[name]
            assert repr(part) == row[column], row[0]


def test_floors_are_those_that_are_enforced():
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    floors = TEXTS["docs/architecture.md"].partition("## Floors")[2].partition("```text\n")[2].partition("```")[0]
    assert [line.split() for line in floors.splitlines()] == [layer.split(" : ") for layer in contract["layers"]]
