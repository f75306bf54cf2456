"""How a preparation ends: stopped by a signal, with nobody to read its output, on a full disk, in a closed folder."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
from ml_collections import ConfigDict

from cfinet_jax.input import origin
from cfinet_jax.preparation import __main__ as prepare
from cfinet_jax.preparation import record_files

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path) -> Path:
    """Eight pictures in a folder with a space in its name, which train.json and val.json describe."""
    folder = tmp_path / "my source"
    folder.mkdir()
    for number in range(8):
        cv2.imwrite(str(folder / f"{number}.png"), np.zeros((40, 60, 3), np.uint8))
    images = [{"id": number, "file_name": f"{number}.png", "height": 40, "width": 60} for number in range(8)]
    annotations = [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 9, 9]}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "ship"}]}
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def run(source: Path, *others: str) -> int:
    arguments = ["prepare.py", "own", "--name=mine", f"--source={source}", f"--data_dir={source.parent}/prepared"]
    with mock.patch.object(sys, "argv", [*arguments, *others]):
        return prepare.main()


def left(source: Path) -> list[str]:
    """Files beside the source, TFDS's empty folders aside."""
    files = (path for path in source.parent.rglob("*") if path.is_file() and source not in path.parents)
    return sorted(path.name for path in files)


def stopping(function, number: signal.Signals, at: int):
    """A function whose call `at` stops the process first."""
    calls = []

    def call(*arguments, **named):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), number)
            time.sleep(0.2)
        return function(*arguments, **named)

    return call


MOMENTS = {  # what is being done when a signal comes, and whether pictures are known by then
    "first picture": ("cv2.imdecode", cv2.imdecode, 1),
    "third picture": ("cv2.imdecode", cv2.imdecode, 3),
    "records": ("cfinet_jax.preparation.own_builder.columns", None, 2),
    "JSON": ("cfinet_jax.preparation.coco_files.load_json", None, 2),
    "files": (
        "cfinet_jax.preparation.record_files.Uncompressed.write_examples",
        record_files.Uncompressed.write_examples,
        1,
    ),
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_ends_it_in_one_line_and_the_same_command_resumes(source, capfd, moment, number):
    name, function, at = MOMENTS[moment]
    if function is None:
        module, _, attribute = name.rpartition(".")
        function = getattr(sys.modules[module], attribute)
    before = signal.getsignal(number)
    with (
        mock.patch(name, stopping(function, number, at)),
        mock.patch("cfinet_jax.preparation.checked_pictures.MOST_THREADS", 1),
    ):
        assert run(source) == 75
    assert signal.getsignal(number) == before
    said = [line for line in capfd.readouterr().err.splitlines() if not re.match(r"[IWE]\d{4} |Checking", line)]
    assert said == [f"Stopped by {number.name}. Rerun the same command to complete it."]
    assert left(source) in ([], ["checked.jsonl", "lock"])
    assert run(source) == 0 and "checked.jsonl" not in left(source)


def test_output_that_nobody_reads_is_no_error(source):
    command = (
        f"{sys.executable} data/prepare.py own --name=mine '--source={source}' '--data_dir={source.parent}/p' | head -0"
    )
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "(broken pipe)" in done.stderr and len(done.stderr.splitlines()) == 1
    assert "Error" not in done.stderr and "cannot be" not in done.stderr
    assert left(source) in ([], ["checked.jsonl", "lock"])


FULL, OVER_QUOTA = OSError(errno.ENOSPC, "No space left"), OSError(errno.EDQUOT, "Disk quota exceeded")
CLOSED = PermissionError(errno.EACCES, "Permission denied", "there")


def fail(error: Exception):
    return mock.Mock(side_effect=error)


FAILURES = {  # what fails, how, and what is said
    "journal full": (
        "cfinet_jax.preparation.journal.json.dumps",
        FULL,
        "checked.jsonl cannot be written (No space left)",
    ),
    "account full": ("etils.epath.gpath.PosixGPath.write_text", FULL, "cannot be written"),
    "journal full at its end": (
        "etils.epath.gpath.PosixGPath.open",
        lambda *_: mock.Mock(close=fail(FULL)),
        "checked.jsonl cannot be written",
    ),
    "last records full": (
        "cfinet_jax.preparation.record_files.array_record_module.ArrayRecordWriter",
        lambda *_: mock.Mock(close=fail(RuntimeError("write() failed: No space left"))),
        "cannot be written (write() failed: No space left): choose another --data_dir",
    ),
    "records full": (
        "cfinet_jax.preparation.record_files.Uncompressed.write_examples",
        OVER_QUOTA,
        "Disk quota exceeded",
    ),
    "closed source": ("etils.epath.gpath.PosixGPath.glob", CLOSED, "Permission denied"),
    "closed folder": (
        "cfinet_jax.runtime.files.exists",
        CLOSED,
        "there cannot be read (Permission denied): make it readable",
    ),
    "closed data_dir": (
        "cfinet_jax.preparation.builders.OwnBuilder",
        CLOSED,
        "there cannot be used (Permission denied)",
    ),
}


@pytest.mark.parametrize("row", FAILURES)
def test_a_disk_that_is_full_or_closed_is_said_in_one_line(source, capfd, row):
    name, error, said = FAILURES[row]
    nobody_else = mock.patch("cfinet_jax.preparation.builders.locked", lambda *_: contextlib.nullcontext())
    with nobody_else, mock.patch(name, side_effect=error):
        assert run(source) == 2
    lines = [line for line in capfd.readouterr().err.splitlines() if not re.match(r"[IWE]\d{4} ", line)]
    assert len(lines) == 1 and said in lines[0]


def test_home_and_spaces_in_arguments(source, monkeypatch):
    monkeypatch.setenv("HOME", str(source.parent))
    monkeypatch.chdir(source.parent)
    entries = ["--annotations=train=~/my source/train.json,~/my source", "--annotations=val=val.json"]
    arguments = ["prepare.py", "coco", "--name=mine", "--source=~/my source", "--data_dir=~/prepared", *entries]
    with mock.patch.object(sys, "argv", arguments):
        assert prepare.main() == 0
    assert (source.parent / "prepared/mine").is_dir() and not (source.parent / "~").exists()
    (metadata,) = source.parent.glob("prepared/mine/*/metadata.json")
    wanted = " ".join(entry.removeprefix("--annotations=") for entry in entries)
    settings = ConfigDict({"source": "~/my source", "annotations": f" {wanted.replace(' val=', '  val=')} "})
    origin.check_origin(json.loads(metadata.read_text()), settings, metadata.parent)


@pytest.mark.parametrize(
    ("annotations", "entries"),
    [
        (None, []), ("", []), ("  ", []), ("train=a.json", ["train=a.json"]),
        ("train=a.json  val=b.json", ["train=a.json", "val=b.json"]),
        (" train=my data/a.json,my  pictures val=b.json\n", ["train=my data/a.json,my  pictures", "val=b.json"]),
        ("train=a=b.json val=c d", ["train=a=b.json", "val=c d"]),
    ],
)  # fmt: skip
def test_entries_of_annotations_may_have_spaces(annotations, entries):
    assert origin.split_entries(annotations) == entries
