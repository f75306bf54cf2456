"""The one exception that stands for a mistake of the user's, not of the program's."""


class UserError(Exception):
    """Something the user can mend; the message is one line that says what to change.

    `cfinet_jax.main` and `data/prepare.py` print it without a traceback and exit with status 2.
    """
