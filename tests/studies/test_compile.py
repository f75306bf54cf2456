"""`--mode=compile`: its tables, and the collectives in a step of the whole detector."""

import importlib.util
import re
from types import SimpleNamespace

import jax
import pytest

from cfinet_jax.build import build
from cfinet_jax.runtime import mesh
from cfinet_jax.studies import compile
from cfinet_jax.studies.collectives import Collective
from configs import coco
from tests import tiny

COMMAND = (f"--config={tiny.__file__}", "--mode=compile")


def keep_settings(patch):
    """Protect the cache and the backend of this process; return the settings that would have changed."""
    changed = {}
    patch.setattr(jax.config, "update", changed.__setitem__)
    for name, value in compile.MACHINE.items():
        patch.setenv(name, value)
    return changed


@pytest.fixture
def settings_stay(monkeypatch):
    keep_settings(monkeypatch)


@pytest.fixture(scope="module")
def compiled():
    """The output of the command, and the costs in it by step."""
    costs, of_step = {}, compile.cost

    def recorded(name, step):
        costs[name] = of_step(name, step)
        return costs[name]

    with pytest.MonkeyPatch.context() as patch:
        changed = keep_settings(patch)
        patch.setattr(compile, "cost", recorded)
        status, output, errors = tiny.call_main(*COMMAND, "--classes=5")
    assert (status, errors) == (0, "")
    assert changed["jax_enable_compilation_cache"] is False
    return output, costs


def test_both_steps_are_compiled_without_data_and_workdir(compiled):
    output, _ = compiled
    assert "8 x cpu, 5 classes" in output
    _, training, prediction = output.split(" step | on one device |")
    for table in (training, prediction):
        cells = dict(re.findall(r"^\| (.+?) \| ([\d,.]+) \|$", table, re.MULTILINE))
        numbers = {name: float(cell.replace(",", "")) for name, cell in cells.items()}
        together = sum(numbers[f"{part}, MiB"] for part in ("arguments", "output in memory of its own", "temporaries"))
        assert numbers["**in all, MiB**"] == pytest.approx(together, abs=0.02)
        assert min(numbers["arguments, MiB"], numbers["temporaries, MiB"], numbers["memory accessed, MiB"]) > 0.1
    assert re.search(r"^\| \d+ x all-reduce outside of loops, MiB \|", training, re.MULTILINE)
    assert "in every round" not in output and "all-reduce" not in prediction


def test_collectives_in_loops_have_rows_of_their_own():
    found = [Collective("all-reduce", 2**20, True), Collective("all-reduce", 2**19, False)]
    memory = SimpleNamespace(
        argument_size_in_bytes=0, output_size_in_bytes=4, alias_size_in_bytes=4, temp_size_in_bytes=0
    )
    text = compile.table("training", compile.Cost(memory, 2e12, 0.0, 3.0, [*found, found[1]]))
    assert (
        "| 2 x all-reduce outside of loops, MiB | 1.00 |\n| 1 x all-reduce in every round of a loop, MiB | 1.00 |"
        in text
    )
    assert "| 10^12 floating-point operations | 2.000 |" in text


def test_devices_share_only_divisors_gradients_and_exemplars(compiled):
    config, found = tiny.tiny_config(), compiled[1]["training"].collectives
    assert {(each.kind, each.in_loop) for each in found} == {("all-reduce", False)}
    detector, _ = build(config, 5)
    params = jax.tree.leaves(compile.state_shapes(config, detector, mesh.make_mesh()).params)
    learnt = sum(each.size for each in params) * 4
    offers = config.dataset.batch_size * config.detector.imitation.max_exemplars
    exemplars = 5 * min(offers, config.detector.imitation.max_class_exemplars) * 7 * 7 * 16 * 4
    # The rest are divisors, statistics and offers to the memory; one or two parameters have no gradient.
    assert abs(sum(each.size for each in found) - learnt - exemplars) < 2000


@pytest.mark.parametrize(
    ("arguments", "installed", "message"),
    [
        (["--topology=v5e:1x1"], False, "pip install libtpu"),
        (
            ["--topology=v9:1x1"],
            True,
            "--topology=v9:1x1 (INVALID: v9)",
        ),
        (["--config.dataset.batch_size=12"], True, "dataset.batch_size is 12"),
        (["--classes=0"], True, "--classes=0"),
        (["--mode=train", "--workdir=x", "--topology=v5e:1x1"], True, "--topology belongs to --mode=compile"),
        (["--mode=train", "--workdir=x", "--classes=3"], True, "--classes belongs to --mode=compile"),
        (["--config.dataset.stored_size=None"], True, "dataset.stored_size"),
    ],
)
def test_mistakes_are_refused_in_one_line(settings_stay, monkeypatch, arguments, installed, message):
    def refuse(**_):
        raise RuntimeError("INVALID:\n v9")

    monkeypatch.setattr(compile.topologies, "get_topology_desc", refuse)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: installed or None)
    status, output, errors = tiny.call_main(*COMMAND, *arguments)
    assert (status, output, errors.count("\n")) == (2, "", 1) and message in errors


def test_sizes_left_to_the_data_must_be_set(settings_stay):
    with pytest.raises(compile.UserError, match="dataset.stored_size is left to the data set"):
        compile.compile(coco.get_config(), None, 9)


def test_a_step_that_does_not_fit_is_a_user_error(monkeypatch):
    class TooLarge:
        def compile(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 18.50G of 15.75G hbm.\nmore")

    with pytest.raises(compile.UserError, match="training step does not fit .*15.75G hbm.*fewer images"):
        compile.cost("training", TooLarge())
