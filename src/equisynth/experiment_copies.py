"""Copies of the repository in which ``dvc exp run --temp`` and ``--queue`` work: below ``.dvc/tmp/exps``.

DVC puts the tracked files there and nothing else, and deletes the copy at the end. What git ignores and the pipeline
needs or keeps is therefore linked from the main repository: runs, their artifacts and checkpoints outlive the copy.
"""

from __future__ import annotations

from pathlib import Path

COPIES = (".dvc", "tmp", "exps")
FILES, FOLDERS = ("mlflow.db",), ("mlruns", ".equisynth")
WEIGHTS = "weights"


def main_repository(folder: Path) -> Path | None:
    """The repository of which a folder is DVC's temporary copy; None where it is none."""
    if not (folder / ".dvc").is_dir():
        return None
    parts = folder.parts
    for start in range(len(parts) - len(COPIES) - 1, 0, -1):
        if parts[start : start + len(COPIES)] == COPIES:
            return Path(*parts[:start])
    return None


def link_main_repository(folder: Path | None = None) -> None:
    """Links the main repository's runs, checkpoints and FID weights into a copy; elsewhere it does nothing.

    Args:
        folder: by default the working directory.
    """
    folder = Path.cwd() if folder is None else folder
    main = main_repository(folder)
    if main is None:
        return
    for name in FOLDERS:
        (main / name).mkdir(exist_ok=True)
    for name in FILES + FOLDERS:
        _link(folder / name, main / name)
    for path in sorted((main / WEIGHTS).glob("*.pth")):
        _link(folder / WEIGHTS / path.name, path)


def _link(link: Path, target: Path) -> None:
    """A link to a file that need not exist yet; what stands in its place already stays."""
    try:
        link.symlink_to(target)
    except (FileExistsError, FileNotFoundError):  # another stage was first; no such folder in this commit
        return
