"""What ends a command in one line instead of a traceback, and with which status."""

import argparse
import errno
import sys
from collections.abc import Callable
from typing import NoReturn

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class UserError(Exception):
    """Something the user can mend; the message is one line that says what to change.

    Every command prints it without a traceback and exits with status 2.
    """


class Unwritable(UserError):
    """A workdir that cannot be written, full or closed: what comes next would fail as well."""


class Interrupted(BaseException):
    """A run that was asked to stop and has saved what it did; the message is one line that says how to go on.

    As KeyboardInterrupt it is no `Exception`: it may come anywhere, and libraries make warnings of those.
    The command prints it and exits with status 75: what is called EX_TEMPFAIL elsewhere, try again.
    """


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments as the rest of the program does."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def exit_status(command: Callable[[], None]) -> int:
    """That of a command, and one line where it is not 0.

    75: it was interrupted. 2: the user is mistaken, the disk full, a bucket closed, or what reads it not installed.
    """
    try:
        command()
    except UserError as error:
        return end(2, str(error))
    except Interrupted as error:
        return end(75, str(error))
    except ImportError as error:
        if "gcsfs" not in str(error):
            raise
        return end(2, f"a path on gs:// cannot be reached ({error}): pip install gcsfs")
    except OSError as error:
        if str(error).startswith("Forbidden"):  # so gcsfs says it, without a number
            return end(2, f"no access ({error}): see to your rights in the bucket, then give the same command again.")
        if error.errno not in NO_SPACE:
            raise
        return end(2, f"no space left ({error}): make room, then give the same command again.")
    return 0


def end(status: int, line: str) -> int:
    """The status, with what is said of it; what a bucket says has several lines."""
    print(f"cfinet_jax: {' '.join(line.splitlines())}", file=sys.stderr)
    return status
