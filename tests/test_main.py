"""The command line: files it writes, lines it prints, and its exit status."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import pytest

from cfinet_jax import __main__ as command
from cfinet_jax import main
from tests import tiny

ROOT = Path(__file__).parents[1]


def test_training_writes_every_file(trained):
    workdir, output = trained
    assert {path.name for path in workdir.iterdir()} == {
        "checkpoints",
        "detections.json",
        "errors.png",
        "imitation.png",
        "learning_curve.png",
        "lock",
        "metrics.json",
        "metrics.jsonl",
        "evaluated.json",
        "metrics.md",
        "overlays",
        "proposals.npz",
        "proposals.png",
        "report.html",
        "report.md",
        "settings.json",
        "tensorboard",
    }
    assert [path.name for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()] != []
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [record["kind"] for record in records] == ["train", "train", "eval"]
    proposals = json.loads((workdir / "metrics.json").read_text())["proposals"]
    assert proposals["per_object"] is not None and proposals["AR100"] == proposals["AR1000"]  # of 40
    assert proposals.items() == {k.removeprefix("proposals/"): v for k, v in records[-1].items() if "/" in k}.items()
    assert "16 training and 8 evaluation images, 6 classes; steps 0 to 2 of 8 images." in output
    assert (workdir / "metrics.md").read_text() in output and "traffic-light" in output


def test_evaluation_repeats_the_numbers(trained, tiny_scenes, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(trained[0], workdir)
    (workdir / "metrics.json").unlink()
    status, output, errors = tiny.call_main(*tiny.arguments(tiny_scenes, workdir), "--mode=evaluate")
    assert (status, errors) == (0, "")
    assert (workdir / "metrics.json").read_text() == (trained[0] / "metrics.json").read_text()
    assert (workdir / "metrics.md").read_text() in output


def test_settings_on_the_command_line_reach_the_mode(monkeypatch, tmp_path):
    received = {}
    monkeypatch.setattr("cfinet_jax.evaluate.evaluate", lambda config, workdir: received.update(locals()))
    changes = ("--config.training.images=24", "--config.dataset.image_size=(96, 64)", "--config.detector.neck.levels=5")
    status, _, _ = tiny.call_main(*tiny.arguments("data", tmp_path), "--mode=evaluate", *changes)
    config = received["config"]
    assert (status, received["workdir"]) == (0, main.epath.Path(tmp_path))
    assert (config.training.images, config.dataset.image_size, config.detector.neck.levels) == (24, (96, 64), 5)
    assert config.dataset.data_dir == "data" and config.is_locked


def test_compiled_programs_are_cached(monkeypatch):
    kept = {}
    monkeypatch.setattr(jax.config, "update", kept.__setitem__)
    monkeypatch.setattr(main, "guarded", lambda _: 3)
    assert main.main() == 3 and not kept  # the tests set the variable
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    assert main.main() == 3
    assert kept == {"jax_compilation_cache_dir": str(Path.home() / ".cache" / "cfinet_jax")}


OUTPUTS = {  # arguments of `python -m cfinet_jax`: exit status, words of stdout, words of stderr
    "": (0, "train|predict|metrics|prepare|scenes", ""),
    "--help": (0, "train|predict|metrics|prepare|scenes", ""),
    "train --help": (0, "--workdir|--config|--images", ""),
    "metrics --help": (0, "--protocol|--detections", ""),
    "tain": (2, "", "'tain'|train, evaluate"),
    "train --config=scenes:relased --workdir=x": (2, "", "'relased'|released"),
    "train --config=scenes --workdir=x --config.training.imagse=1": (2, "", "'imagse'"),
    "export --workdir=absent": (2, "", "No run in absent"),
}


@pytest.mark.parametrize("row", OUTPUTS)
def test_the_command_as_a_program(row, tmp_path):
    status, output, errors = OUTPUTS[row]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "cfinet_jax", *row.split()]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == status, ended.stderr
    assert all(word in ended.stdout for word in output.split("|"))
    assert all(word in ended.stderr for word in errors.split("|"))
    assert len(ended.stderr.splitlines()) == bool(errors) and not list(tmp_path.iterdir())


def test_every_command_runs_its_mode_or_package(monkeypatch):
    monkeypatch.setattr(main, "main", lambda: tiny.call_main(*sys.argv[1:])[0])
    called = []
    for name, mode in main.MODES.items():
        module = importlib.import_module(f"cfinet_jax.{mode.module}")
        called.append(mock.create_autospec(getattr(module, name)))
        monkeypatch.setattr(module, name, called[-1])
        flags = [f"--{flag}=1" for flag in mode.flags]
        monkeypatch.setattr(sys, "argv", ["cfinet_jax", name, "--config=scenes", "--workdir=x", *flags])
        assert command.main() == 0
    for name, (package, _) in command.OTHERS.items():
        module = importlib.import_module(f"cfinet_jax.{package}.__main__")
        called.append(mock.create_autospec(module.main, return_value=0))
        monkeypatch.setattr(module, "main", called[-1])
        monkeypatch.setattr(sys, "argv", ["cfinet_jax", name, "--help"])
        assert command.main() == 0 and sys.argv == ["cfinet_jax", "--help"]
    assert [each.call_count for each in called] == [1] * 12


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("def get_config(:", "SyntaxError"),
        ("import absent_module", "No module named 'absent_module'"),
        ("def get_config():\n    return get_config()", "RecursionError"),
        ("def get_config():\n    return 1 / 0", "ZeroDivisionError"),
        ("import json\n\ndef get_config():\n    return json.loads('[' * 100_000)", "RecursionError"),
        ("def get_config():\n    raise NotImplementedError('later')", "NotImplementedError: later"),
        ("get_config = 3", "not callable"),
        ("\0", "--config"),
    ],
)
def test_a_broken_config_is_one_line(tmp_path, text, part):
    (tmp_path / "mine.py").write_text(text)
    status, _, errors = tiny.call_main(f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/run")
    assert status == 2 and part in errors and errors.count("\n") == 1


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"config": ' + "[" * 5000, "null", "", "\xff"])
def test_damaged_settings_are_one_line(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    status, _, errors = tiny.call_main("--mode=export", f"--workdir={tmp_path}")
    assert status == 2 and "settings.json is missing or damaged" in errors and errors.count("\n") == 1


def test_a_config_is_found_by_name_and_by_file(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for value in ("coco:released", "sodaa", f"{ROOT}/configs/sodad.py:released"):
        status, _, errors = tiny.call_main(f"--config={value}", "--workdir=run", "--config.dataset.source=nowhere")
        assert status == 2 and "nowhere" in errors and "configs" not in errors, errors


def test_a_trained_model_is_used_with_its_own_config(trained, tmp_path, monkeypatch):
    used = {}
    monkeypatch.setattr("cfinet_jax.predict.predict", lambda config, **others: used.update(others, config=config))
    command = ("--mode=predict", "--images=pictures", "--output=found")
    assert tiny.call_main(*command, f"--workdir={trained[0]}")[::2] == (0, "")
    config = used.pop("config")
    assert used == {"workdir": trained[0], "images": "pictures", "output": "found"}
    recorded = json.loads((trained[0] / "settings.json").read_text())["config"]
    assert json.loads(config.to_json()) == recorded and config.dataset.image_size == tiny.SHAPE
    status, _, errors = tiny.call_main(*command, f"--workdir={tmp_path}")
    assert status == 2 and f"No run in {tmp_path}" in errors
    assert "--config is missing" in tiny.call_main(f"--workdir={tmp_path}")[2]
