"""Files are written completely or not at all, damaged ones are named, and only regular ones are read."""

import codecs
import contextlib
import errno
import io
import json
import os
import pwd
from unittest import mock

import numpy as np
import pytest
from etils import epath

from cfinet_jax.errors import Interrupted, Unwritable, UserError
from cfinet_jax.runtime import files
from cfinet_jax.runtime.files import reading, replacing, writing


@pytest.mark.parametrize("before", ["before", None])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), Interrupted("x"), ValueError()])
def test_an_unfinished_file_does_not_replace_the_old_one(tmp_path, before, error):
    path = epath.Path(tmp_path) / "metrics.json"
    if before is not None:
        path.write_text(before)
    with contextlib.suppress(type(error)), replacing(path) as partial:
        partial.write_text("aft")
        raise error
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == ({"metrics.json": before} if before else {})
    with replacing(path) as partial:
        partial.write_bytes(b"after")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("metrics.json", "after")]


def test_the_reason_is_kept_if_the_folder_is_gone(tmp_path):
    with pytest.raises(OSError, match="No space"), replacing(epath.Path(tmp_path) / "gone" / "x"):
        raise OSError(errno.ENOSPC, "No space left on device")


def arrays() -> bytes:
    """Return the content of an .npz file."""
    content = io.BytesIO()
    np.savez_compressed(content, hits=np.arange(2000))
    return content.getvalue()


def flipped() -> bytes:
    """Return the file with damaged compressed numbers."""
    return arrays()[:100] + b"\xff" * 60 + arrays()[160:]


@pytest.mark.parametrize(
    "content",
    [None, b"", b"[", b'{"AP": 0.', b"null", b"[]", b"7", b'"x"', b'{"a": 1}', b"\xff\xfe{", b"[" * 100_000, b"PK\3\4",
     arrays()[:300], arrays()[:-30], flipped(), arrays() + b"x" * 9, b"\0" * 500],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path, content):
    path = epath.Path(tmp_path) / "results"
    if content is not None:
        path.write_bytes(content)

    def read_arrays() -> None:
        with path.open("rb") as file, np.load(file) as arrays:
            assert arrays["objects"].sum()

    for read in (lambda: json.loads(path.read_text())["AP"]["all"], read_arrays):
        with pytest.raises(UserError) as caught, reading(path, "score it again."):
            read()
        message = str(caught.value)
        assert str(path) in message and message.endswith("score it again.")
        assert len(message.splitlines()) == 1 and len(message) < 400


def link(path, target):
    path.symlink_to(target)


REFUSED = {
    "pipe": os.mkfifo,
    "device": lambda path: link(path, "/dev/zero"),
    "folder": os.mkdir,
    "link to itself": lambda path: link(path, path),
    "link to a pipe": lambda path: (os.mkfifo(f"{path}.pipe"), link(path, f"{path}.pipe")),
    "nothing": lambda path: None,
    "terminal": lambda path: link(path, "/dev/tty"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_only_regular_files_are_read(tmp_path, row):
    REFUSED[row](tmp_path / "file")
    for read in (files.read_bytes, files.read_text, files.length_and_time):
        with pytest.raises(OSError):
            read(epath.Path(tmp_path / "file"))


def test_an_owner_without_a_name_does_not_matter(tmp_path):
    (tmp_path / "file").write_text("four")
    os.utime(tmp_path / "file", (7.9, 7.9))
    with mock.patch.object(pwd, "getpwuid", side_effect=KeyError("getpwuid(): uid not found: 4242")):
        assert files.length_and_time(epath.Path(tmp_path / "file")) == (4, 7)
        assert files.read_bytes(epath.Path(tmp_path / "file")) == b"four"


@pytest.mark.parametrize(
    "content",
    [
        "héllo\n".encode(),
        codecs.BOM_UTF8 + "héllo\n".encode(),
        "héllo\n".encode("utf-16"),
        codecs.BOM_UTF16_BE + "héllo\n".encode("utf-16-be"),
    ],
)
def test_byte_order_marks_are_removed(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert files.read_text(epath.Path(tmp_path / "file")) == "héllo\n"


def test_a_file_that_no_name_can_belong_to_does_not_exist(tmp_path):
    (tmp_path / "a").touch()
    assert [files.exists(epath.Path(tmp_path / name)) for name in ("a", "b", "a/b", "x" * 300, "a\0b")] == [True] + [
        False
    ] * 4


def test_a_failure_to_write_names_the_path_and_the_option():
    with (
        pytest.raises(Unwritable, match="/there cannot be written .No space.: choose another --output"),
        writing("/there", "--output"),
    ):
        raise OSError(errno.ENOSPC, "No space")
    with pytest.raises(BrokenPipeError), writing("/there", "--output"):
        raise BrokenPipeError


def test_a_folder_that_cannot_be_searched_is_not_taken_for_an_empty_one(tmp_path):
    with mock.patch("os.stat", side_effect=PermissionError(13, "Permission denied")), pytest.raises(PermissionError):
        files.exists(epath.Path(tmp_path / "a"))
