"""The one exception that stands for a mistake of the user's, not of the program's."""


class UserError(Exception):
    """Something the user can mend; the message is one line that says what to change.

    Every command prints it without a traceback and exits with status 2.
    """
