"""The one exception that means: the user can mend this."""

from __future__ import annotations


class UserError(Exception):
    """A mistake the user can correct.

    The message is one line that says which file or key, what was found, what was expected and what to do.
    The command line prints it without a traceback and exits with code 2.
    """
