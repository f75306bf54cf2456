"""How a preparation ends: whole, without a bad test split, stopped by a signal, on a full disk, beside another one."""

import contextlib
import errno
import json
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from unittest import mock

import cv2
import pytest
from etils import epath
from ml_collections import ConfigDict

from cfinet_jax.errors import UserError
from cfinet_jax.input import origin
from cfinet_jax.preparation import builders, record_files
from cfinet_jax.runtime.lock import locked
from tests import prepared, tiny

ROOT = Path(__file__).parents[2]
SPLITS = ("train", "val", "test")
SIZE = (40, 60)
BOX = {"bbox": [1, 1, 9, 9]}
MODULES = "cfinet_jax.preparation"


def content(name: str, *classes: str) -> dict:
    return prepared.coco({f"{name}{n}.png": SIZE for n in range(3)}, [BOX], classes or ("car", "bus"))


@pytest.fixture
def source(tmp_path) -> Path:
    """COCO files of three splits of three pictures each, in a folder with a space in its name."""
    folder = tmp_path / "my source"
    for number, split in enumerate(SPLITS):
        for n in range(3):
            prepared.draw(folder / f"{split}{n}.png", SIZE, 3 * number + n)
        prepared.write(folder / f"{split}.json", content(split))
    return folder


def run(source: Path, *others: str) -> tuple[int, str, str]:
    return prepared.call("own", source, "--name=mine", *others)


def left(source: Path) -> list[str]:
    """Files beside the source, TFDS's empty folders aside."""
    files = (path for path in source.parent.rglob("*") if path.is_file() and source not in path.parents)
    return sorted(path.name for path in files)


# --- signals ---------------------------------------------------------------------------------------------------------


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


def one_thread() -> contextlib.AbstractContextManager:
    return mock.patch(f"{MODULES}.checked_pictures.MOST_THREADS", 1)


MOMENTS = {  # what is running when a signal comes, and at which call of it
    "first picture": ("cv2.imdecode", 1),
    "third picture": ("cv2.imdecode", 3),
    "records": (f"{MODULES}.own_builder.columns", 2),
    "JSON": (f"{MODULES}.coco_files.load_json", 2),
    "files": (f"{MODULES}.record_files.Uncompressed.write_examples", 1),
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_ends_it_in_one_line_and_the_same_command_resumes(source, moment, number):
    name, at = MOMENTS[moment]
    before, function = signal.getsignal(number), pkgutil.resolve_name(name)
    with mock.patch(name, stopping(function, number, at)), one_thread():
        status, _, errors = run(source)
    assert (status, errors) == (75, f"Stopped by {number.name}. Rerun the same command to complete it.\n")
    assert signal.getsignal(number) == before and left(source) in ([], ["checked.jsonl", "lock"])
    assert run(source)[0] == 0 and "checked.jsonl" not in left(source)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_stopped_while_it_prepares_resumes(source, tmp_path, number):
    data = [f"--config.dataset.source={source}", "--config.dataset.name=mine"]
    command = [*tiny.arguments(tmp_path / "prepared", tmp_path / "run"), *data]
    decode = cv2.imdecode
    with mock.patch("cv2.imdecode", stopping(decode, number, 6)), one_thread():
        status, _, errors = tiny.call_main(*command)
    assert status == 75 and re.fullmatch(f"cfinet_jax: Stopped by {number.name}. Rerun the same command.*\n", errors)
    assert left(source) == ["checked.jsonl", "lock"] and not (tmp_path / "run").exists()
    reached = mock.patch("cfinet_jax.training.create_run", side_effect=UserError("prepared"))
    with reached, mock.patch("cv2.imdecode", mock.Mock(wraps=decode)) as decoding:
        status, output, errors = tiny.call_main(*command)
    known = re.search("([0-9]) images were checked already", output)
    assert (status, errors) == (2, "cfinet_jax: prepared\n") and known
    assert (
        int(known[1]) >= 5 and decoding.call_count == 9 - int(known[1]) and (tmp_path / "prepared/mine/1.0.0").exists()
    )
    assert not list(tmp_path.glob("prepared/*.unfinished"))


def test_a_signal_during_the_imports_ends_the_command_in_one_line():
    with subprocess.Popen([sys.executable, "data/prepare.py", "--help"], cwd=ROOT, stderr=subprocess.PIPE) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        while "numpy" not in maps.read_text():  # it imports numpy after it handles signals, and long before its end
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    assert (process.returncode, errors.count(b"\n")) == (75, 1) and b"Stopped by SIGINT" in errors


# --- what cannot be written or read ----------------------------------------------------------------------------------


def test_a_closed_pipe_ends_it_in_one_line(source):
    arguments = f"own --name=mine '--source={source}' '--data_dir={source.parent}/p'"
    command = f"{sys.executable} {ROOT}/data/prepare.py {arguments} | head -0; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=source, capture_output=True, text=True)  # from any folder
    assert done.returncode == 2 and "(broken pipe)" in done.stderr and len(done.stderr.splitlines()) == 1
    assert "Error" not in done.stderr and "cannot be" not in done.stderr
    assert left(source) in ([], ["checked.jsonl", "lock"])


FULL, OVER_QUOTA = OSError(errno.ENOSPC, "No space left"), OSError(errno.EDQUOT, "Disk quota exceeded")
CLOSED = PermissionError(errno.EACCES, "Permission denied", "there")


def failing_at_close(error: Exception):
    return lambda *_: mock.Mock(close=mock.Mock(side_effect=error))


FAILURES = {  # what fails, how, and what is said
    "journal full": (f"{MODULES}.journal.json.dumps", FULL, "checked.jsonl cannot be written (No space left)"),
    "account full": ("etils.epath.gpath.PosixGPath.write_text", FULL, "cannot be written"),
    "journal full at its end": (
        "etils.epath.gpath.PosixGPath.open", failing_at_close(FULL), "checked.jsonl cannot be written"
    ),
    "last records full": (
        f"{MODULES}.record_files.array_record_module.ArrayRecordWriter",
        failing_at_close(RuntimeError("write() failed: No space left")),
        "cannot be written (write() failed: No space left): choose another --data_dir",
    ),
    "records full": (f"{MODULES}.record_files.Uncompressed.write_examples", OVER_QUOTA, "Disk quota exceeded"),
    "closed source": ("etils.epath.gpath.PosixGPath.glob", CLOSED, "Permission denied"),
    "closed folder": ("cfinet_jax.runtime.files.exists", CLOSED, "there cannot be read (Permission denied)"),
    "closed data_dir": (f"{MODULES}.builders.OwnBuilder", CLOSED, "there cannot be used (Permission denied)"),
}  # fmt: skip


@pytest.mark.parametrize("row", FAILURES)
def test_a_full_or_closed_disk_is_reported_in_one_line(source, row):
    name, error, said = FAILURES[row]
    nobody_else = mock.patch(f"{MODULES}.builders.locked", lambda *_: contextlib.nullcontext())
    with nobody_else, mock.patch(name, side_effect=error):
        status, _, errors = run(source)
    assert status == 2 and len(errors.splitlines()) == 1 and said in errors


def open_files(*folders: Path) -> list[str]:
    """Return the files below folders that this process has open."""
    links = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
    return [link for link in links if link.startswith(tuple(map(str, folders)))]


def test_nothing_of_a_preparation_stays_in_the_process(source, tmp_path):
    settings = ConfigDict({**prepared.settings("mine", tmp_path / "prepared", source), "boxes": "horizontal"})
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    threads, output = threading.active_count(), sys.stdout
    builders.ensure_prepared(settings)
    assert (threads, output) == (threading.active_count(), sys.stdout) and not open_files(source, tmp_path)
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert record_files.FORMAT.value == "array_record" and len(prepared.accounts(tmp_path / "prepared")) == 3


# --- splits ----------------------------------------------------------------------------------------------------------

UNUSABLE = {  # the content of the file of a split, and what is said of it
    "half": (json.dumps(content("test"))[:50], "is not JSON"),
    "empty": ("", "is not JSON"),
    "not COCO": ("[]", "no list 'images'"),
    "images missing": (json.dumps(content("none")), "no image of .* can be used"),
    "no class": (json.dumps(content("test") | {"categories": []}), "names no class"),
    "a class fewer": (json.dumps(content("test", "car")), "only in 'train': 2: 'bus'.: make them agree"),
    "a class more": (json.dumps(content("test", "car", "bus", "van")), "only in 'test': 3: 'van'"),
    "another name": (json.dumps(content("test", "car", "Bus")), "2: 'bus'; only in 'test': 2: 'Bus'"),
    "images twice": (json.dumps(content("test") | {"images": content("test")["images"] * 2}), "to several"),
}


@pytest.mark.parametrize("row", UNUSABLE)
def test_only_a_test_split_that_cannot_be_used_is_left_out(source, row):
    text, message = UNUSABLE[row]
    (source / "test.json").write_text(text)
    status, output, _ = run(source)
    assert status == 0 and re.search(f"The split 'test' cannot be used and is left out: .*{message}", output)
    assert prepared.accounts(source.parent / "prepared").keys() == {"train", "val"}
    (source / "val.json").write_text(text.replace("test", "val"))
    status, _, errors = prepared.call("own", source, "--name=other")
    assert status == 2 and re.search(message.replace("'test'", "'val'"), errors)
    assert not list(source.parent.glob("prepared/other/*"))


def test_a_test_split_alone_is_needed(source):
    for split in ("train", "val"):
        (source / f"{split}.json").unlink()
    assert run(source)[0] == 0
    (source / "test.json").write_text("{")
    status, _, errors = prepared.call("own", source, "--name=other")
    assert status == 2 and "is not JSON" in errors


# --- one at a time, and what the arguments mean ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["own", "scenes"])
def test_a_second_preparation_at_once_is_refused(source, kind):
    unfinished = epath.Path(source.parent) / "prepared" / "scenes.unfinished"
    with locked(unfinished):
        with pytest.raises(UserError, match="is in use .process .*wait for that preparation"):
            builders.prepare(builders.make_builder(request(kind, source)))
        assert not list(source.parent.glob("prepared/scenes/*"))
    if kind == "own":
        builders.prepare(builders.make_builder(request(kind, source)))
        assert not unfinished.exists()


def request(kind: str, source: Path) -> builders.Request:
    given = {} if kind == "scenes" else {"source": str(source), "name": "scenes"}
    return builders.Request(kind, epath.Path(source.parent / "prepared"), **given)


def test_a_refused_preparation_leaves_no_lock(source):
    (source / "train.json").write_text("{")
    assert run(source)[0] == 2 and not list(source.parent.glob("prepared/*.unfinished"))


def test_home_and_spaces_in_arguments(source, monkeypatch):
    monkeypatch.setenv("HOME", str(source.parent))
    monkeypatch.chdir(source.parent)
    entries = ["--annotations=train=~/my source/train.json,~/my source", "--annotations=val=val.json"]
    assert prepared.call("coco", Path("~/my source"), "--name=mine", *entries, to=Path("~/prepared"))[0] == 0
    assert (source.parent / "prepared/mine").is_dir() and not (source.parent / "~").exists()
    (metadata,) = source.parent.glob("prepared/mine/*/metadata.json")
    wanted = " ".join(entry.removeprefix("--annotations=") for entry in entries)
    settings = ConfigDict({"source": "~/my source", "annotations": f" {wanted.replace(' val=', '  val=')} "})
    origin.check_origin(json.loads(metadata.read_text()), settings, metadata.parent)


def replace_by_file(version: Path) -> None:
    shutil.rmtree(version)
    version.write_text("")


LEFT = {
    "an empty folder": lambda version: [path.unlink() for path in version.iterdir()],
    "without its description": lambda version: (version / "dataset_info.json").unlink(),
    "a file": replace_by_file,
}


@pytest.mark.parametrize("row", LEFT)
def test_a_version_that_holds_nothing_prepared_is_said(source, row):
    assert run(source)[0] == 0 and "is already prepared" in run(source)[1]
    LEFT[row](source.parent / "prepared" / "mine" / "1.0.0")
    status, output, errors = run(source)
    assert status == 2 and "holds no prepared data set: delete it" in errors and "already prepared" not in output


@pytest.mark.parametrize("link", ["link", "deep/link", "link/."])
def test_a_link_to_the_source_is_the_same_source(source, link):
    place = source.parent / link.removesuffix("/.")
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(source, target_is_directory=True)
    assert run(source)[0] == 0
    (metadata,) = source.parent.glob("prepared/mine/*/metadata.json")
    content, settings = json.loads(metadata.read_text()), {"annotations": None}
    origin.check_origin(content, ConfigDict(settings | {"source": str(source.parent / link)}), metadata.parent)
    for other in (source.parent, source.parent / "none", "a\0b"):
        with pytest.raises(UserError, match="was prepared from"):
            origin.check_origin(content, ConfigDict(settings | {"source": str(other)}), metadata.parent)


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


def test_the_configuration_decides_the_boxes_of_own_data_only(monkeypatch):
    asked = []
    monkeypatch.setattr(builders, "prepare", asked.append)
    monkeypatch.setattr(builders, "make_builder", lambda request: (request.kind, request.boxes))
    for boxes in ("horizontal", "oriented"):
        for name in ("mine", "sodaa"):
            settings = {**prepared.settings(name, Path("prepared"), Path("F")), "boxes": boxes}
            builders.ensure_prepared(ConfigDict(settings))
    assert asked == [("own", "horizontal"), ("sodaa", "horizontal"), ("own", "oriented"), ("sodaa", "horizontal")]
