"""Where a user's own pairs lie: a folder of cases, or a table of paths.

```
<folder>/<case>/<case>_<role>.nii.gz   (.nii, .tif, .tiff)
```

or a CSV or JSON table with the columns (keys) ``case``, ``input``, ``label`` and any other role; paths in it start from
the folder of the table.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from equisynth.config import Strict
from equisynth.datasets.archives import CaseSkipped
from equisynth.datasets.raw_images import NIFTI, TIFF, RawImage, read_image
from equisynth.errors import UserError
from equisynth.files import sha256

IMAGES = ("input", "label", "label_aligned")
MASKS = ("input_mask", "label_mask", "label_aligned_mask", "evaluation_mask")
ROLES = IMAGES + MASKS


class FolderSource(Strict):
    """``sources.<dataset>`` of kind ``path``: a folder of cases, or a CSV or JSON table."""

    kind: Literal["path"] = "path"
    path: Path


def locate(settings: FolderSource) -> dict[str, Path]:
    """The folder or table of a source.

    Raises:
        UserError: it is absent, or neither.
    """
    path = Path(os.path.expanduser(settings.path))
    if not path.exists():
        raise UserError(f"{path}: not found; expected a folder of cases, or a CSV or JSON table of paths")
    if path.is_file() and path.suffix.lower() not in (".csv", ".json"):
        raise UserError(f"{path}: expected a folder of cases, or a table that ends with .csv or .json")
    return {"cases": path}


class FolderCases:
    """A located source, opened; use as a context manager.

    Raises:
        UserError: a malformed table, or no case with both an input and a label.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self.path = paths["cases"]
        self.unknown: list[Path] = []  # files in the folder that play no role
        self._files: dict[str, dict[str, Path]] = {}
        self._problems: dict[str, str] = {}

    def __enter__(self) -> FolderCases:
        if self.path.is_dir():
            self._list_folder()
        else:
            self._list_table()
        for case, files in self._files.items():
            missing = [role for role in ("input", "label") if role not in files]
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", case):
                self._problems[case] = f"case name {case!r}: expected letters, digits, '.', '_' and '-'; rename it"
            elif missing and case not in self._problems:
                self._problems[case] = f"{self._place(case)}: no {' and no '.join(missing)} image"
        self._find_alike()
        if not self.cases():
            found = f"; {next(iter(self._problems.values()))}" if self._problems else self._one_level_off()
            raise UserError(
                f"{self.path}: no case with an input and a label, expected <case>/<case>_input.nii.gz and "
                f"<case>/<case>_label.nii.gz (or .nii, .tif, .tiff), or a table with case, input, label{found}"
            )
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def cases(self) -> list[str]:
        """Sorted names of the cases that have an input and a label."""
        return sorted(case for case in self._files if case not in self._problems)

    def incomplete_cases(self) -> list[str]:
        """Sorted names of the cases that cannot be read as listed; `read` says why."""
        return sorted(self._problems)

    def full_name(self, case: str) -> str:
        """Names have no short form here."""
        return case

    def contents(self) -> dict[str, str]:
        """File -> SHA-256 of all files of all cases: tells a changed source from an unchanged one."""
        paths = sorted({path for files in self._files.values() for path in files.values() if path.is_file()})
        top = self.path if self.path.is_dir() else self.path.parent
        return {os.path.relpath(path, top): sha256(path) for path in paths}

    def read(self, case: str) -> dict[str, RawImage]:
        """The images and masks of a case by role.

        Raises:
            CaseSkipped: one is missing or cannot be used; the reason names the file.
        """
        if case in self._problems or case not in self._files:
            raise CaseSkipped(self._problems.get(case, f"{self.path}: holds no case {case!r}"))
        files = self._files[case]
        return {role: read_image(files[role], role in MASKS) for role in ROLES if role in files}

    def _one_level_off(self) -> str:
        """A hint where the images lie in the folder itself instead of in one folder per case."""
        if not self.path.is_dir():
            return ""
        images = sorted(path.name for path in self.path.iterdir() if path.name.lower().endswith(NIFTI + TIFF))
        return f"; found {images[0]} in the folder itself: give each case a folder of its own" if images else ""

    def _find_alike(self) -> None:
        """Names that many disks take for one."""
        alike: defaultdict[str, list[str]] = defaultdict(list)
        for case in self._files:
            alike[case.casefold()].append(case)
        for cases in (sorted(cases) for cases in alike.values() if len(cases) > 1):
            for case in cases:
                names = " and ".join(map(repr, cases))
                self._problems[case] = f"{self.path}: cases {names} differ in upper and lower case only; rename one"

    def _place(self, case: str) -> str:
        return str(self.path / case) if self.path.is_dir() else f"{self.path}: case {case!r}"

    def _list_folder(self) -> None:
        for folder in sorted(path for path in self.path.iterdir() if path.is_dir() and path.name[0] != "."):
            case = folder.name
            files = self._files.setdefault(case, {})
            for path in sorted(path for path in folder.iterdir() if path.name[0] != "."):
                role = _role(case, path.name)
                if role is None or not path.is_file():
                    self.unknown.append(path)
                elif role in files:
                    self._problems[case] = f"{path}: a second {role} beside {files[role].name}; keep one"
                else:
                    files[role] = path

    def _list_table(self) -> None:
        rows = _rows(self.path)
        for row in rows:
            case = row.get("case")
            if not case:
                raise UserError(f"{self.path}: a row without a case ({row}); give each case a name")
            files = {role: self.path.parent / name for role, name in row.items() if role != "case" and name}
            self._files.setdefault(case, files)
        for case, count in Counter(row["case"] for row in rows).items():
            if count > 1:
                self._problems[case] = f"{self.path}: case {case!r} stands {count} times; give each row its own name"


def _role(case: str, name: str) -> str | None:
    """The role that a file of a case's folder plays by its name."""
    ending = next((ending for ending in NIFTI + TIFF if name.lower().endswith(ending)), None)
    if ending is None or not name.startswith(f"{case}_"):
        return None
    role = name[len(case) + 1 : -len(ending)]
    return role if role in ROLES else None


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV or JSON table, with its columns checked."""
    known = ("case", *ROLES)
    if path.suffix.lower() == ".json":
        try:
            rows = json.loads(path.read_text(encoding="utf-8-sig"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: is not valid JSON ({error}); mend it, or write the table as CSV") from None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{path}: expected a list of objects with the keys {', '.join(known)}")
    else:
        try:
            with open(path, encoding="utf-8-sig", newline="") as file:
                rows = [
                    {key: (value or "").strip() for key, value in row.items() if key} for row in csv.DictReader(file)
                ]
        except (UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"{path}: cannot be read as CSV ({error}); save it as UTF-8 with commas") from None
    for row in rows:
        for key, value in row.items():
            if key not in known and ";" in key:
                raise UserError(f"{path}: columns are separated by semicolons, expected commas; save it with commas")
            if key not in known:
                raise UserError(f"{path}: unknown column {key!r}; known: {', '.join(known)}")
            if value is not None and not isinstance(value, str):
                raise UserError(f"{path}: {key} is {value!r}, expected text")
    return rows
