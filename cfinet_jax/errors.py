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


class Interrupted(Exception):
    """A run that was asked to stop and has saved what it did; the message is one line that says how to go on.

    The command prints it and exits with status 75: what is called EX_TEMPFAIL elsewhere, try again.
    """


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments as the rest of the program does."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def exit_status(command: Callable[[], None]) -> int:
    """That of a command: 2 after a user's mistake or on a full disk, 75 where it was interrupted, each in one line."""
    try:
        command()
    except UserError as error:
        return end(2, str(error))
    except Interrupted as error:
        return end(75, str(error))
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        return end(2, f"no space left ({error}): make room, then give the same command again.")
    return 0


def end(status: int, line: str) -> int:
    """The status, with what is said of it."""
    print(f"cfinet_jax: {line}", file=sys.stderr)
    return status
