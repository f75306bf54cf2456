"""How a command ends: one line instead of a traceback, its exit status, and the signals that stop it."""

import argparse
import contextlib
import errno
import gc
import io
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

from etils import epath

# How the messages of errors without a number begin: no permission (gcsfs); a folder or link where a file is expected.
NO_NUMBER = ("Forbidden", "Cannot overwrite", "Cannot call rmtree")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
SIGNALS = (signal.SIGTERM, signal.SIGINT)
STOPPED = "Stopped by {}. Rerun the same command to complete it."


class UserError(Exception):
    """A mistake that the user can correct; the message is one line that says what to change."""


class Unwritable(UserError):
    """A file or folder that cannot be written (no space, no permission): any further run would fail as well."""


class Interrupted(BaseException):
    """A stop on request; the message is one line that says how to resume.

    Not an `Exception`, since libraries such as JAX swallow those in places.
    """


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `UserError` for invalid arguments."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def exit_status(command: Callable[[], None], name: str = "cfinet_jax: ") -> int:
    """Run `command` and return its exit status, printing one line, after `name`, on failure.

    The status is 75 (EX_TEMPFAIL) after an interruption, 2 for a user error or a file or device that cannot be used,
    and 1 for anything else; the line then names a file with the traceback, or CFINET_JAX_TRACEBACK=1 shows it.
    """
    # A stream that the shell has closed (>&-) is None.
    sys.stdout, sys.stderr = (each or epath.Path(os.devnull).open("w") for each in (sys.stdout, sys.stderr))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may not be encodable
            stream.reconfigure(errors="backslashreplace")
    try:
        with handling(interrupt):
            command()
            sys.stdout.flush()  # or a closed pipe would only be noticed while Python exits
    except (Interrupted, UserError) as error:
        return end(75 if isinstance(error, Interrupted) else 2, str(error), name)
    except Exception as error:
        if line := known(error):
            return end(2, line, name)
        if os.environ.get("CFINET_JAX_TRACEBACK") == "1":
            raise
        with tempfile.NamedTemporaryFile("w", prefix="cfinet_jax_", suffix=".log", delete=False) as log:
            log.write(f"{sys.argv}\n{traceback.format_exc()}")
        what = f"{type(error).__name__}: {error}"[:300]
        return end(1, f"Unexpected {what}. Please report it with the traceback, which is in {log.name}.", name)
    return 0


def known(error: Exception) -> str | None:
    """Return advice for a failure of the environment (disk, device, closed pipe); None for any other."""
    reason = str(error)
    cause = error.__cause__ or error
    if isinstance(error, BrokenPipeError):
        sys.stdout = epath.Path(os.devnull).open("w")  # Python would flush the broken one on exit
        return "The output was closed (broken pipe): write it to a file instead, then rerun the same command."
    if isinstance(cause, ImportError) and cause.name == "gcsfs":
        return f"A path on gs:// cannot be reached ({reason}): pip install gcsfs"
    if isinstance(error, OSError) and (error.errno is not None or reason.startswith(NO_NUMBER)):
        return (
            f"{error.filename or 'A file'} cannot be used ({error.strerror or reason}): fix its permissions, make room "
            "or choose another path; then rerun the same command."
        )
    # JAX raises errors of several types while it starts a device, some without a message: the place tells them.
    if traceback.extract_tb(error.__traceback__)[-1].filename.endswith("xla_bridge.py"):
        asked = f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}"
        return f"JAX cannot start a device with {asked} ({reason}): unset it, or choose another, such as cpu."
    return None


@contextlib.contextmanager
def handling(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Handle `SIGNALS` with `handler` if in the main thread, except those that are ignored (as by `&` in a script)."""

    def handle(number: int, frame: FrameType | None) -> None:
        # Python ignores exceptions from callbacks of the garbage collector (JAX has one) and from `__del__`, so a
        # handler that raises there would be lost: send the signal again a moment later.
        deaf = [getattr(callback, "__code__", None) for callback in gc.callbacks]
        if frame and (frame.f_code in deaf or frame.f_code.co_name == "__del__"):
            threading.Timer(0.05, signal.raise_signal, (number,)).start()
        else:
            handler(number, frame)

    ours = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, handle) for number in ours if signal.getsignal(number) != signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, signal.SIG_DFL if handled is None else handled)


def interrupt(number: int, _: FrameType | None) -> NoReturn:
    """Signal handler: end the command; ignore further signals while partial work is cleaned up."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted(STOPPED.format(signal.Signals(number).name))


def leave(number: int, _: FrameType | None) -> NoReturn:
    """Signal handler while modules are imported: end the process at once, since no work has started."""
    os._exit(end(75, STOPPED.format(signal.Signals(number).name)))


def end(status: int, line: str, name: str = "cfinet_jax: ") -> int:
    """Print why a command failed, on one line however many a library uses, and return the status."""
    with contextlib.suppress(OSError):  # a closed pipe
        print(f"{name}{' '.join(without_password(line).split())}", file=sys.stderr, flush=True)
    return status


def without_password(text: str) -> str:
    """Remove user names and passwords from the addresses in a text."""
    return re.sub(r"://[^/\s]*@", "://", text)
