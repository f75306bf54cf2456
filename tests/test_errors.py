"""Every command ends with one line and a status, whatever happens and whenever."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from cfinet_jax import errors
from cfinet_jax.errors import Interrupted, UserError, exit_status

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "main": ["-m", "cfinet_jax.main", "--mode=analyse", "--config=configs/scenes.py", "--workdir=TMP/run"],
    "metrics": ["-m", "cfinet_jax.metrics", "--protocol=coco", "--annotations=TMP/a.json", "--detections=TMP/b.json"],
    "pretrained": ["-m", "cfinet_jax.pretrained", "TMP/weights.npz", "--output=TMP/out.safetensors"],
    "command": ["TMP/bin/cfinet_jax", "train", "--config=scenes", "--workdir=TMP/run"],  # as pip installs it
    "prepare": ["data/prepare.py", "own", "--source=TMP/absent", "--data_dir=TMP/prepared"],
}


def raising(error: BaseException, cause: BaseException | None = None):
    """Return a command that fails."""

    def command() -> None:
        raise error from cause

    return command


NO_GCSFS = ModuleNotFoundError("No module named 'gcsfs'", name="gcsfs")


@pytest.mark.parametrize(
    ("error", "status", "parts"),
    [
        (UserError("Change\nthis."), 2, ("cfinet_jax: Change this.",)),
        (UserError("No http://me:secret@host/a.npz"), 2, ("No http://host/a.npz",)),
        (IsADirectoryError("Cannot overwrite: /run/report.html is a directory"), 2, ("/run/report.html", "choose")),
        (OSError("Cannot call rmtree on a symbolic link"), 2, ("symbolic link", "choose another path")),
        (Interrupted("Stopped. Go on."), 75, ("Stopped. Go on.",)),
        (PermissionError(errno.EACCES, "Permission denied", "/closed/x"), 2, ("/closed/x", "Permission denied")),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/gone"), 2, ("/gone", "rerun")),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/a.txt/b"), 2, ("/a.txt/b", "Not a directory")),
        (OSError(errno.EROFS, "Read-only file system", "/ro"), 2, ("/ro", "Read-only file system")),
        (OSError(errno.ENOSPC, "No space left on device"), 2, ("No space left", "make room", "same command")),
        (OSError(errno.EIO, "Input/output error", "/disk"), 2, ("/disk", "Input/output error")),
        (OSError("Forbidden: gs://bucket/x\nno access"), 2, ("Forbidden: gs://bucket/x no access",)),
        (NO_GCSFS, 2, ("pip install gcsfs",)),
        (ValueError("wrong\nshape"), 1, ("ValueError: wrong shape", "LOG")),
        (OSError("of no number"), 1, ("OSError: of no number", "LOG")),
        (AssertionError(), 1, ("AssertionError", "LOG")),
        (RecursionError("maximum depth"), 1, ("RecursionError", "LOG")),
        (MemoryError(), 1, ("MemoryError", "LOG")),
        (KeyError("x" * 9999), 1, ("KeyError", "LOG")),
        (ImportError("No module named 'other'", name="other"), 1, ("No module named 'other'", "LOG")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_every_error_ends_in_one_line(error, status, parts, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CFINET_JAX_TRACEBACK", "0")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert exit_status(raising(error)) == status
    line = capsys.readouterr().err
    assert line.startswith("cfinet_jax: ") and line.count("\n") == 1 and len(line) < 600
    logs = list(tmp_path.iterdir())
    assert len(logs) == ("LOG" in parts)
    assert all(part in line for part in parts if part != "LOG")
    for log in logs:
        assert str(log) in line and "Traceback" in log.read_text() and "raise error" in log.read_text()


@pytest.mark.parametrize("closed", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_a_closed_output_is_no_failure(closed, monkeypatch):
    for name in closed:
        monkeypatch.setattr(sys, name, None)
    assert exit_status(lambda: print(sys.stdout.isatty(), sys.stderr.isatty())) == 0
    assert exit_status(raising(UserError("Change this."))) == 2
    for name in closed:
        getattr(sys, name).close()


def test_the_missing_package_is_named_if_another_library_reports_it(capsys):
    assert exit_status(raising(ImportError("Please install gcsfs"), NO_GCSFS)) == 2
    assert "pip install gcsfs" in capsys.readouterr().err


def test_the_traceback_is_shown_on_request(monkeypatch):
    monkeypatch.setenv("CFINET_JAX_TRACEBACK", "1")
    with pytest.raises(ValueError, match="odd"):
        exit_status(raising(ValueError("odd")))


@pytest.mark.parametrize("number", errors.SIGNALS)
def test_a_signal_ends_a_command_and_handlers_are_restored(number, capsys):
    before = signal.getsignal(number)

    def command() -> None:
        signal.raise_signal(number)
        time.sleep(5)
        pytest.fail("went on")

    assert exit_status(command) == 75
    line = capsys.readouterr().err
    assert number.name in line and "Rerun the same command" in line and line.count("\n") == 1
    assert signal.getsignal(number) == before


def test_an_ignored_signal_stays_ignored():
    """A script ignores them with `command &`."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert exit_status(lambda: signal.raise_signal(signal.SIGINT)) == 0
    finally:
        signal.signal(signal.SIGINT, before)


def fill(command: list[str], folder: Path) -> list[str]:
    """Put the folder into a command."""
    return [sys.executable, *(part.replace("TMP", str(folder)) for part in command)]


@pytest.mark.parametrize("number", errors.SIGNALS)
@pytest.mark.parametrize(
    ("name", "module"), [("main", "jax"), ("command", "jax"), ("metrics", "numpy"), ("pretrained", "safetensors")]
)
def test_a_signal_while_modules_are_imported_ends_in_one_line(name, module, number, tmp_path):
    (tmp_path / f"{module}.py").write_text(f"import os, time; os.kill(os.getpid(), {number:d}); time.sleep(20)")
    (tmp_path / "bin").mkdir()
    script = "import sys\nfrom cfinet_jax.__main__ import main\nsys.exit(main())"
    (tmp_path / "bin" / "cfinet_jax").write_text(script)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = fill(COMMANDS[name], tmp_path)
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (75, ""), ended.stderr
    assert number.name in ended.stderr and ended.stderr.count("\n") == 1


def test_importing_the_package_does_not_change_signal_handlers():
    program = "import signal, cfinet_jax; assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


@pytest.mark.parametrize("name", ["main", "metrics", "pretrained", "prepare"])
def test_an_unexpected_error_in_any_command_is_one_line_and_a_log(name, tmp_path):
    place = {
        "main": "cfinet_jax.build.discover_sizes",
        "metrics": "cfinet_jax.metrics.json_files.read_ground_truth",
        "pretrained": "cfinet_jax.pretrained.weight_files.read",
        "prepare": "cfinet_jax.runtime.paths.absolute",
    }[name]
    module, _, function = place.rpartition(".")
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.abc, importlib.machinery, sys\n"
        "class Loader(importlib.machinery.SourceFileLoader):\n"
        "    def exec_module(self, module):\n"
        "        super().exec_module(module)\n"
        f"        def fail(*a, **k): raise ZeroDivisionError('by nothing')\n"
        f"        module.{function} = fail\n"
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name != {module!r}: return None\n"
        "        spec = importlib.machinery.PathFinder.find_spec(name, path)\n"
        "        spec.loader = Loader(name, spec.origin)\n"
        "        return spec\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "TMPDIR": str(tmp_path)}
    environment["CFINET_JAX_TRACEBACK"] = ""
    command = fill(COMMANDS[name], tmp_path)
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1, ended.stderr
    found = re.fullmatch(r".*ZeroDivisionError: by nothing\. .* (/\S+\.log)\.\n", ended.stderr)
    assert found and "Traceback" in Path(found[1]).read_text()


@pytest.mark.parametrize("platforms", ["cuda", "nonsense", "tpu,nonsense"])
def test_a_device_that_is_not_there_is_named(platforms, tmp_path):
    program = "import sys, jax; from cfinet_jax.errors import exit_status; sys.exit(exit_status(jax.devices))"
    environment = os.environ | {"JAX_PLATFORMS": platforms}
    command = [sys.executable, "-c", program]
    if jax.default_backend() != "cpu":
        pytest.skip("the platform is there")
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1, ended.stderr
    assert f"JAX_PLATFORMS={platforms}" in ended.stderr and "unset it" in ended.stderr


@pytest.mark.parametrize("program", ["for _ in range(9999): print('line' * 99)", "print('once')"])
@pytest.mark.parametrize("both", [False, True])
def test_a_closed_output_is_one_line(program, both):
    head = "import sys, time\nfrom cfinet_jax.errors import exit_status\ndef command():\n    time.sleep(0.5)"
    command = [sys.executable, "-c", f"{head}\n    {program}\nsys.exit(exit_status(command))"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT if both else subprocess.PIPE, text=True
    )
    process.stdout.close()
    said = "" if both else process.stderr.read()
    assert process.wait(60) == 2
    assert both or (len(said.splitlines()) == 1 and "broken pipe" in said)
    if not both:
        process.stderr.close()
