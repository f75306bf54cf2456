"""Files and values from outside: what kind of file is read, and what a value says."""

import codecs
import os
import pwd
from unittest import mock

import pytest
from etils import epath

from cfinet_jax import outside


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
    for read in (outside.read_bytes, outside.read_text, outside.length_and_time):
        with pytest.raises(OSError):
            read(epath.Path(tmp_path / "file"))


def test_an_owner_without_a_name_does_not_matter(tmp_path):
    (tmp_path / "file").write_text("four")
    os.utime(tmp_path / "file", (7.9, 7.9))
    with mock.patch.object(pwd, "getpwuid", side_effect=KeyError("getpwuid(): uid not found: 4242")):
        assert outside.length_and_time(epath.Path(tmp_path / "file")) == (4, 7)
        assert outside.read_bytes(epath.Path(tmp_path / "file")) == b"four"


@pytest.mark.parametrize(
    "content",
    [
        "héllo\n".encode(),
        codecs.BOM_UTF8 + "héllo\n".encode(),
        "héllo\n".encode("utf-16"),
        codecs.BOM_UTF16_BE + "héllo\n".encode("utf-16-be"),
    ],
)
def test_byte_order_marks_are_no_text(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    assert outside.read_text(epath.Path(tmp_path / "file")) == "héllo\n"


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [("a", None, True), ("b", None, False), ("a/b", None, False), ("x" * 300, None, False), ("a\0b", None, False)],
)
def test_what_exists(tmp_path, name, error, said):
    (tmp_path / "a").touch()
    assert outside.exists(epath.Path(tmp_path / name)) == said


def test_a_closed_folder_is_not_taken_for_an_empty_one(tmp_path):
    with mock.patch("os.stat", side_effect=PermissionError(13, "Permission denied")), pytest.raises(PermissionError):
        outside.exists(epath.Path(tmp_path / "a"))


@pytest.mark.parametrize(
    ("value", "number", "flag"),
    [
        ("0", 0, True), ("1", 1, True), ("false", False, True), ("True", True, True), ("1.0", 1, True),
        (" 1 ", 1, True), (0, 0, True), (True, True, True), (None, None, True), (1.0, 1, True), (0.0, 0, True),
        ("null", None, True), ("640", 640, False), (640.0, 640, False), (2, 2, False), ("-1", -1, False),
        (0.5, 0.5, False), ("yes", "yes", False), ("", "", False), ("0x1", "0x1", False), ([1], [1], False),
        ("[" * 10**5, "[" * 10**5, False), ("001", "001", False), ("nan", "nan", False),
    ],
)  # fmt: skip
def test_numbers_and_flags_are_what_their_text_says(value, number, flag):
    found = outside.number(value)
    assert found == number and type(found) is type(number)
    assert outside.is_flag(found) == flag
