"""Read files and values that others wrote: only regular files, with or without a byte order mark, numbers as text."""

import codecs
import errno
import json
import os
import reprlib
import stat
from typing import Any

from etils import epath

from cfinet_jax.buckets import in_bucket


def length_and_time(path: epath.Path) -> tuple[int, int]:
    """Return the bytes of a regular file and when it last changed; epath's `stat` fails where its owner has no name.

    Raises:
      OSError: there is no such file, or it is a folder, a pipe or a device, which may never end.
    """
    if in_bucket(path):
        facts = path.stat()
        return facts.length, facts.mtime
    found = os.stat(path)  # noqa: PTH116
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is a folder, a pipe or a device", str(path))
    return found.st_size, int(found.st_mtime)


def exists(path: epath.Path) -> bool:
    """Whether something is at a path. Raises `PermissionError` where a closed folder hides it."""
    if in_bucket(path):
        return path.exists()
    try:
        os.stat(path)  # noqa: PTH116
    except PermissionError:
        raise
    except (OSError, ValueError):  # a ValueError: no file can have this name
        return False
    return True


def read_bytes(path: epath.Path) -> bytes:
    """Read a regular file. Raises `OSError`, also for a folder, a pipe or a device."""
    length_and_time(path)
    return path.read_bytes()


def read_text(path: epath.Path, errors: str = "strict") -> str:
    """Read a text file in UTF-8, or in UTF-16 if a byte order mark says so."""
    content = read_bytes(path)
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if wide else "utf-8-sig", errors)


def number(value: Any) -> Any:
    """Return the number that a text says, and a whole one where it is written as a float; anything else as it is."""
    if isinstance(value, str):
        try:
            value = json.loads(value.strip().lower())
        except (ValueError, RecursionError):
            return value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def shown(value: Any) -> str:
    """Return a value as a message shows it: short, however large or deep it is."""
    return reprlib.repr(value)[:80]


def is_flag(value: Any) -> bool:
    """Whether a value can be taken for true or false: 0, 1, or none at all."""
    return value is None or (type(value) in (int, bool) and value in (0, 1))
