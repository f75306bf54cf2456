"""Read and write files so that a failure is one line and never leaves half a file.

Only regular files are read, with or without a byte order mark. A file is written under another name, then renamed.
"""

import codecs
import contextlib
import errno
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator

from etils import epath

from cfinet_jax.errors import Unwritable, UserError
from cfinet_jax.runtime.paths import in_bucket

DAMAGED = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
DAMAGED += (zipfile.BadZipFile, zlib.error)  # raised by readers of a file that is cut short or of another format


@contextlib.contextmanager
def replacing(path: epath.Path) -> Iterator[epath.Path]:
    """Yield a temporary path that replaces `path` if the block succeeds; otherwise `path` stays as it is."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the folder itself may be gone
            partial.unlink(missing_ok=True)
        raise


def replace_text(path: epath.Path, text: str) -> None:
    """Write a text file completely or not at all."""
    with replacing(path) as partial:
        partial.write_text(text)


@contextlib.contextmanager
def writing(path: epath.PathLike, option: str) -> Iterator[None]:
    """Raise `Unwritable`, which names `path` and the option to change, if the block fails to write there."""
    try:
        yield
    except BrokenPipeError:  # of the output, not of the file
        raise
    except OSError as error:
        raise Unwritable(f"{path} cannot be written ({error.strerror or error}): choose another {option}.") from error


@contextlib.contextmanager
def reading(path: epath.Path, advice: str) -> Iterator[epath.Path]:
    """Yield a path to read from; raise `UserError`, which names the file and gives `advice`, if the block fails."""
    try:
        yield path
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} is missing or damaged ({reason}): {advice}") from error


def length_and_time(path: epath.Path) -> tuple[int, int]:
    """Return the size in bytes and the modification time in seconds of a regular file.

    Raises:
      OSError: there is no such file, or it is a folder, a pipe or a device, which may never end.
    """
    if in_bucket(path):
        facts = path.stat()
        return facts.length, facts.mtime
    found = os.stat(path)  # noqa: PTH116 - epath's `stat` fails if the owner of the file has no name
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is a folder, a pipe or a device", str(path))
    return found.st_size, int(found.st_mtime)


def write_times(path: epath.Path) -> tuple[int, ...]:
    """Return numbers that differ after a file has been written or replaced, even with its modification time kept."""
    if in_bucket(path):
        return length_and_time(path)
    found = os.stat(path)  # noqa: PTH116
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def exists(path: epath.Path) -> bool:
    """Return whether there is anything at a path. Raises `PermissionError` if its folder cannot be searched."""
    if in_bucket(path):
        return path.exists()
    try:
        os.stat(path)  # noqa: PTH116
    except PermissionError:
        raise
    except (OSError, ValueError):  # ValueError: no file can have this name
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
