"""Files that are whole: written under another name first, and refused in one line where they are damaged."""

import contextlib
import zipfile
import zlib
from collections.abc import Iterator

from etils import epath

from cfinet_jax.errors import UserError

DAMAGED = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RecursionError)
DAMAGED += (zipfile.BadZipFile, zlib.error)  # what reading a file raises that is torn or holds something else


@contextlib.contextmanager
def replacing(path: epath.Path) -> Iterator[epath.Path]:
    """Yield a path to write to, which then replaces `path`; after a failure or a signal `path` is as it was."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the folder itself may be gone
            partial.unlink(missing_ok=True)
        raise


def replace_text(path: epath.Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text)


@contextlib.contextmanager
def reading(path: epath.Path, advice: str) -> Iterator[epath.Path]:
    """Yield a path to read from; raise `UserError` that names the file and gives `advice` if the block fails."""
    try:
        yield path
    except DAMAGED as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} is missing or damaged ({reason}): {advice}") from error
