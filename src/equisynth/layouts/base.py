"""What the stages ``raw`` and ``prepare`` know of a kind of raw data: a module with these names.

A dataset names its kind (``datasets.<name>.layout`` in params.yaml); the module is ``equisynth.layouts.<layout>``. How
one case is prepared lies in ``equisynth.datasets.<layout>``; here it is only tied to archives and files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Protocol, cast

from equisynth import layouts
from equisynth.config import Data, Strict
from equisynth.errors import UserError

Facts = dict[str, Any]
"""What is noted of a prepared case, JSON-like."""
Archives = dict[str, Path]


class Raw(Protocol):
    """Opened raw data."""

    def cases(self) -> list[str]:
        """Sorted names of the complete cases."""
        ...

    def incomplete_cases(self) -> list[str]:
        """Sorted names of the cases that lack something."""
        ...

    def full_name(self, case: str) -> str:
        """The name of a case that may be given in short."""
        ...


class Layout(Protocol):
    """One kind of raw data.

    Attributes:
        SOURCES: kind of source (``phantom``, ``path``, ``download``) -> its parameters.
        Preparation: parameters of the preparation; ``splits`` among them.
        STORED: image roles that every prepared case has.
        CASES_PER_OPENING: how many cases a job prepares before it opens the archives anew.
    """

    SOURCES: Mapping[str, type[Strict]]
    Preparation: type[Strict]
    STORED: tuple[str, ...]
    CASES_PER_OPENING: int

    def fetch(self, source: Any, folder: Path, jobs: int) -> Archives:
        """Makes the archives in ``folder``, finds a user's, or downloads them elsewhere; may write ``splits.json``."""
        ...

    def opened(self, archives: Archives) -> AbstractContextManager[Raw]:
        """The archives, opened and checked."""
        ...

    def prepare_into(self, work: Path, raw: Any, case: str, preparation: Any, data: Data) -> Facts:
        """Writes ``<work>/cases/<case>``, whole or not at all.

        Raises:
            CaseSkipped: with the reason.
        """
        ...

    def constants(self, preparation: Any, data: Data, facts: Sequence[Facts]) -> dict[str, Any]:
        """``preparation`` of dataset.json, from the facts of the training cases."""
        ...

    def default_splits(self, cases: Sequence[str]) -> dict[str, list[str]] | None:
        """Those that hold where neither parameters nor raw data name any; None: there are none."""
        ...


def layout(name: str, where: str) -> Layout:
    """A layout by its name.

    Args:
        where: key that names it, for the error.

    Raises:
        UserError: there is no such file.
    """
    known = sorted({module.name for module in iter_modules(layouts.__path__)} - {"base"})
    if name not in known:
        raise UserError(f"params.yaml: {where}: found {name!r}, expected one of: {', '.join(known)}")
    return cast(Layout, import_module(f"equisynth.layouts.{name}"))


def volume_voxel_size(data: Data) -> tuple[float, float, float]:
    """Of a dataset of volumes, in mm."""
    first, second, third = data.voxel_size
    return first, second, third
