"""The exception that means: the user can mend this; and how it names what was expected."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

LISTED = 12
"""Longer lists are not read: the nearest names are shown instead."""


class UserError(Exception):
    """A mistake the user can correct.

    The message is one line that says which file or key, what was found, what was expected and what to do.
    The command line prints it without a traceback and exits with code 2.
    """


class Diverged(UserError):
    """A training whose losses or weights are no longer finite: what was tried led there, the set-up is sound."""


def one_of(found: object, known: Iterable[object]) -> str:
    """Names that were expected instead of ``found``: all of a short list, else those that look like it.

    >>> one_of("adm", ["sgd", "adam"])
    'sgd, adam'
    """
    names = [str(name) for name in known]
    if len(names) <= LISTED:
        return ", ".join(names)
    near = get_close_matches(str(found), names, 3, 0.6)
    shown = near or names[: LISTED // 2]
    return f"{' or '.join(shown) if near else ', '.join(shown)} ({len(names)} are known)"
