"""The one exception that stands for a mistake of the user's, not of the program's, and how a command ends with it."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Something the user can mend; the message is one line that says what to change.

    Every command prints it without a traceback and exits with status 2.
    """


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments as the rest of the program does."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def exit_status(command: Callable[[], None]) -> int:
    """That of a command: a user's mistake becomes one line and 2."""
    try:
        command()
    except UserError as error:
        print(f"cfinet_jax: {error}", file=sys.stderr)
        return 2
    return 0
