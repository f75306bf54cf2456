"""An exported model detects as the run did, in a process without this package."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from cfinet_jax import export
from cfinet_jax.detection import detection
from cfinet_jax.errors import UserError
from cfinet_jax.input import dataset
from cfinet_jax.input.batches import eval_batches, windows_of
from cfinet_jax.restore import Trained, open_trained
from cfinet_jax.runtime.markdown import escape
from tests import tiny

BLOCKED = """
import sys
for name in ("cfinet_jax", "flax", "orbax", "grain", "tensorflow_datasets"):
    sys.modules[name] = None
"""


@pytest.fixture(scope="module")
def exported(trained, tiny_scenes, tmp_path_factory) -> tuple[Path, epath.Path]:
    """A workdir with an exported model, and its data."""
    workdir = tmp_path_factory.mktemp("exported") / "run"
    shutil.copytree(trained[0], workdir)
    status, output, errors = tiny.call_main(*tiny.arguments("absent", workdir), "--mode=export")
    assert (status, errors) == (0, ""), errors
    assert f"Written: {workdir / 'export'}" in output
    return workdir, tiny_scenes


def test_the_card_says_all_that_a_user_needs(exported, tmp_path):
    workdir, data_dir = exported
    config = tiny.tiny_config()
    config.dataset.data_dir = str(data_dir)
    split = dataset.open_dataset(config.dataset, "test")
    batch = next(eval_batches(split, windows_of(split, config.dataset, training=False), config.dataset, 8))
    model, _ = open_trained(epath.Path(workdir), config)
    expected, _ = jax.device_get(jax.jit(detection(model.detector, config))(model.variables, batch))
    assert expected.valid.any()
    np.savez(tmp_path / "pictures.npz", images=batch.images, sizes=batch.sizes)

    card = (workdir / "export" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    code, count = re.subn(r"np\.(zeros|full)\(.*\)", "pictures[SLOT]", code)
    assert count == 2
    code = code.replace("SLOT", "'images'", 1).replace("SLOT", "'sizes'", 1)
    reading = f"import numpy\npictures = numpy.load({str(tmp_path / 'pictures.npz')!r})\n"
    writing = f"np.savez({str(tmp_path / 'found.npz')!r}, **found)\n"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"XLA_FLAGS": ""}
    subprocess.run(
        [sys.executable, "-c", BLOCKED + reading + code + writing], cwd=workdir / "export", env=environment, check=True
    )
    found = np.load(tmp_path / "found.npz")
    for name in ("boxes", "scores"):
        np.testing.assert_allclose(found[name], getattr(expected, name), rtol=1e-5, atol=1e-5)
    for name in ("labels", "valid"):
        np.testing.assert_array_equal(found[name], getattr(expected, name))


def test_the_card_states_data_metrics_classes_and_config(exported):
    workdir, _ = exported
    card = (workdir / "export" / "README.md").read_text()
    metrics, settings = (json.loads((workdir / name).read_text()) for name in ("metrics.json", "settings.json"))
    assert f"AP50 {metrics['AP50']:.3f}" in card and "data set scenes (split train); measured on the split test" in card
    named = zip(settings["classes"], settings["category_ids"], strict=True)
    assert all(f"{name} ({number})" in card for name, number in named)
    assert json.loads(re.search(r"```json\n(.*?)```", card, re.DOTALL)[1]) == settings["config"] | {
        "dataset": settings["config"]["dataset"] | {"data_dir": "absent"}
    }


@pytest.mark.parametrize("name", ["[car](https://evil.example)", "<script>alert(1)</script>", "`a` | b", "two\nlines"])
def test_names_on_the_card_are_escaped(tmp_path, name):
    config = tiny.tiny_config()
    config.dataset.update(eval_split=name, train_split=name, name=name)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "metrics.json").write_text(json.dumps({f"AP{name}": 0.5}))
    card = export.card(config, Trained(None, {}, (name, "car"), (1, 2)), epath.Path(tmp_path))
    text = re.sub(r"```.*?```", "", card, flags=re.DOTALL)
    assert f"{escape(name)} (1), car (2)" in text and f"AP{escape(name)} 0.500" in text
    assert name not in text and "`a`" not in text and "two\n" not in text


@pytest.mark.parametrize("content", ['{"AP": 0.', "null", '{"AP": "x"}', "[" * 100_000])
def test_a_damaged_metrics_file_is_named(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    config = tiny.tiny_config()
    config.training.pretrained = "weights.npz"
    with pytest.raises(UserError, match=r"metrics.json is missing or damaged .*--mode=evaluate"):
        export.card(config, Trained(None, {}, ("car",), (1,)), epath.Path(tmp_path))


def test_exported_weights_are_evaluated_and_exported_again(exported, tmp_path):
    workdir, data_dir = exported
    weights = workdir / "export" / "weights.safetensors"
    arguments = (*tiny.arguments(data_dir, tmp_path / "again"), f"--config.training.pretrained={weights}")
    status, output, errors = tiny.call_main(*arguments, "--mode=evaluate")
    assert (status, errors) == (0, ""), errors
    assert "cfinet_jax names" in output
    before, again = (json.loads((folder / "detections.json").read_text()) for folder in (workdir, tmp_path / "again"))
    assert before and again == before
    status, _, errors = tiny.call_main(*arguments, "--mode=export")
    assert (status, errors) == (0, ""), errors
    assert (tmp_path / "again" / "export" / "weights.safetensors").exists()
    card = (tmp_path / "again" / "export" / "README.md").read_text()
    assert "loaded from weights.safetensors; measured on" in card


@pytest.mark.parametrize("mode", ["evaluate", "export"])
def test_another_model_than_was_trained_is_refused(exported, mode):
    workdir, data_dir = exported
    arguments = (*tiny.arguments(data_dir, workdir), f"--mode={mode}", "--config.detector.imitation.reweight=True")
    status, _, errors = tiny.call_main(*arguments)
    assert status == 2 and len(errors.splitlines()) == 1
    assert "detector.imitation.reweight" in errors and str(workdir) in errors


def test_exporting_needs_no_training_stack():
    blocked = BLOCKED.replace('"cfinet_jax", "flax", "orbax", ', '"array_record", ')
    subprocess.run([sys.executable, "-c", f"{blocked}\nimport cfinet_jax.main, cfinet_jax.export"], check=True)
