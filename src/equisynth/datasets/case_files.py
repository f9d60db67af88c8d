"""Which member of an archive is which case's, by their names. Where several could be, none is chosen."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from equisynth.datasets.archives import Archive


@dataclass(frozen=True)
class CaseFiles:
    """The files of one kind.

    Attributes:
        archive: that they lie in.
        names: case -> its one file.
        doubled: case -> the files that could all be its own; also cases whose names differ in upper and lower case
            alone, since disks take those for one.
    """

    archive: Archive
    names: dict[str, str] = field(default_factory=dict)
    doubled: dict[str, list[str]] = field(default_factory=dict)

    @property
    def cases(self) -> set[str]:
        """Of all files."""
        return {*self.names, *self.doubled}


def case_files(archive: Archive, pattern: re.Pattern[str]) -> CaseFiles:
    """The members whose whole name is of a pattern; its first group is the case."""
    spelled: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
    for match in filter(None, map(pattern.fullmatch, archive.names())):
        spelled[match[1].casefold()].append((match[1], match[0]))
    found = CaseFiles(archive)
    for files in spelled.values():
        for case, name in files:
            if len(files) == 1:
                found.names[case] = name
            else:
                found.doubled[case] = [name for _, name in files]
    return found


def why_doubled(case: str, sources: Iterable[CaseFiles]) -> str | None:
    """One line for a case that some file is not the only one of; None: each is."""
    for files in sources:
        if case in files.doubled:
            names = files.doubled[case]
            which = ", ".join(dict.fromkeys(names)) + (", all of one name" if len(set(names)) == 1 else "")
            return f"{files.archive.path.name}: holds it {len(names)} times ({which}); keep one"
    return None
