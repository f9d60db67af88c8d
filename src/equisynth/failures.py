"""What the machine refuses (a full disk, a folder that may not be written, a locked database), in one line.

Libraries wrap such errors in exceptions of their own; the chain of causes is followed to that of the system.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

HINTS = {
    errno.ENOSPC: "make room on this disk, then run the same command again",
    errno.EDQUOT: "make room in your quota, then run the same command again",
    errno.EFBIG: "this disk or your limits do not take so large a file",
    errno.EROFS: "choose a folder you can write to",
    errno.EACCES: "give yourself the right, or choose another place",
    errno.EPERM: "give yourself the right, or choose another place",
    errno.ENOTDIR: "a part of this path is a file; choose another place",
    errno.EISDIR: "expected a file; choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "a link leads back to itself; mend it",
    errno.EIO: "the disk is faulty or was taken away",
    errno.ESTALE: "the disk was taken away; mount it again",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n)",
    errno.ENOMEM: "close other programs, or take a machine with more memory",
}
DATABASE_HINTS = {
    "locked": "another process is writing to it: wait for it, then run the same command again",
    "full": "make room on this disk, then run the same command again",
    "readonly": "give yourself the right to write to it",
    "malformed": "restore it from a copy, or move it away to begin a new one",
    "not a database": "restore it from a copy, or move it away to begin a new one",
    "disk I/O error": "make room on this disk, or mend it, then run the same command again",
    "unable to open": "give yourself the right to write there",
}
FULL = "os error 28"  # what libraries written in Rust call a full disk


def explained(error: BaseException) -> str | None:
    """One line for a failure that no mending of the program would prevent; None for all others."""
    import sqlite3

    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.errno in HINTS:
            names = [str(name) for name in (cause.filename, cause.filename2) if name is not None]
            return ": ".join([*names[-1:], f"{cause.strerror}; {HINTS[cause.errno]}"])
        if isinstance(cause, sqlite3.Error):
            hint = next((hint for words, hint in DATABASE_HINTS.items() if words in str(cause)), None)
            if hint is not None:
                return f"database: {cause}; {hint}"
        if FULL in str(cause):
            return f"{cause}; {HINTS[errno.ENOSPC]}"
    return None


def with_final_names(line: str) -> str:
    """The line with the names of temporaries (``files.py``) replaced by those of what they were to become."""
    from equisynth.files import MARK

    return re.sub(rf"\.([^/\s]*){re.escape(MARK)}[a-z0-9_]{{8}}", r"\1", line)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
