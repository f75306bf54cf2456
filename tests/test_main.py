"""The command line: what it leaves, what it says, and how it ends."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from cfinet_jax import main
from cfinet_jax.errors import UserError
from tests import tiny

ROOT = Path(__file__).parents[1]


def test_training_leaves_everything(trained):
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
    assert proposals["per_object"] is not None and proposals["AR100"] == proposals["AR1000"]  # there are but 40
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


def test_a_mistake_of_the_users_is_one_line(monkeypatch, tmp_path):
    def refuse(*_):
        raise UserError("Change this.")

    monkeypatch.setattr("cfinet_jax.training.train", refuse)
    assert tiny.call_main(*tiny.arguments(tmp_path, tmp_path)) == (2, "", "cfinet_jax: Change this.\n")


def test_a_mistake_of_ours_keeps_its_traceback_if_asked(monkeypatch, tmp_path):
    def fail(*_):
        raise ValueError("wrong shape")

    monkeypatch.setattr("cfinet_jax.training.train", fail)
    with pytest.raises(ValueError, match="wrong shape"):
        tiny.call_main(*tiny.arguments(tmp_path, tmp_path))


def test_settings_reach_the_mode(monkeypatch, tmp_path):
    received = []
    monkeypatch.setattr("cfinet_jax.evaluate.evaluate", lambda *arguments: received.append(arguments))
    changes = ("--config.training.images=24", "--config.dataset.image_size=(96, 64)", "--config.detector.neck.levels=5")
    status, _, _ = tiny.call_main(*tiny.arguments("data", tmp_path), "--mode=evaluate", *changes)
    (config, workdir) = received[0]
    assert (status, workdir) == (0, main.epath.Path(tmp_path))
    assert (config.training.images, config.dataset.image_size, config.detector.neck.levels) == (24, (96, 64), 5)
    assert config.dataset.data_dir == "data" and config.is_locked


def test_compiled_programs_are_kept(monkeypatch):
    kept = {}
    monkeypatch.setattr(jax.config, "update", kept.__setitem__)
    monkeypatch.setattr(main, "guarded", lambda _: 3)
    monkeypatch.setattr(main.app, "define_help_flags", lambda: None)
    for given in (True, False):
        if not given:
            monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        with pytest.raises(SystemExit) as end:
            main.main()
        assert end.value.code == 3 and bool(kept) != given
    assert kept == {"jax_compilation_cache_dir": str(Path.home() / ".cache" / "cfinet_jax")}


@pytest.mark.parametrize(
    ("arguments", "status", "output", "errors"),
    [
        (["--help"], 1, "--workdir: Where checkpoints", ""),
        (["--config=configs/scenes.py", "--workdir=x", "--config.training.imagse=1"], 2, "", "no key 'imagse'"),
    ],
)
def test_as_a_program(arguments, status, output, errors):
    command = [sys.executable, "-m", "cfinet_jax.main", *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == status
    assert output in ended.stdout and errors in ended.stderr
    assert len(ended.stderr.splitlines()) == bool(errors)


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
def test_a_config_that_cannot_be_run_is_one_line(tmp_path, text, part):
    (tmp_path / "mine.py").write_text(text)
    status, _, errors = tiny.call_main(f"--config={tmp_path}/mine.py", f"--workdir={tmp_path}/run")
    assert status == 2 and part in errors and errors.count("\n") == 1


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"config": ' + "[" * 5000, "null", "", "\xff"])
def test_settings_that_cannot_be_read_are_one_line(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    status, _, errors = tiny.call_main("--mode=export", f"--workdir={tmp_path}")
    assert status == 2 and f"No run in {tmp_path}" in errors and errors.count("\n") == 1


@pytest.mark.parametrize("file", ["coco.py", "sodaa.py", "scenes.py"])
def test_our_configurations_are_found_from_any_folder(file, tmp_path):
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import cfinet_jax; del sys.path[0]\n"
    program += "from cfinet_jax import main; main.main()"
    arguments = [f"--config={ROOT}/configs/{file}", "--workdir=run", "--mode=analyse"]
    arguments += ["--config.dataset.source=nowhere"]
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2 and "nowhere" in ended.stderr and "configs" not in ended.stderr, ended.stderr


def test_what_is_trained_knows_its_configuration(trained, tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr("cfinet_jax.predict.predict", lambda config, *places: used.append((config, *map(str, places))))
    command = ("--mode=predict", "--images=pictures", "--output=found")
    assert tiny.call_main(*command, f"--workdir={trained[0]}")[::2] == (0, "")
    ((config, *places),) = used
    assert places == [str(trained[0]), "pictures", "found"]
    recorded = json.loads((trained[0] / "settings.json").read_text())["config"]
    assert json.loads(config.to_json()) == recorded and config.dataset.image_size == tiny.SHAPE
    status, _, errors = tiny.call_main(*command, f"--workdir={tmp_path}")
    assert status == 2 and f"No run in {tmp_path}: train or evaluate first" in errors
    assert "--config is missing" in tiny.call_main(f"--workdir={tmp_path}")[2]
