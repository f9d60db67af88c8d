"""Names in BIDS trees (brain imaging data structure): ``sub-01/ses-a/anat/sub-01_ses-a_T2w.nii.gz``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equisynth.errors import UserError
from equisynth.images.formats import NIFTI, stem_of, suffix_of

WEIGHTED = ("T1", "T2", "PD")
"""Modalities whose suffix is ``<name>w``."""
DESCRIPTION, VERSION = "dataset_description.json", "1.10.0"
MADE = "synthesised"
"""Value of ``desc`` in the names of outputs."""
_NAME = re.compile(r"(?P<entities>(?:[A-Za-z0-9]+-[A-Za-z0-9+]+_)+)(?P<suffix>[A-Za-z0-9]+)")


@dataclass(frozen=True)
class Name:
    """The parts of a file's name.

    Attributes:
        entities: (key, value) in their order: (("sub", "01"), ("ses", "a")).
        suffix: the kind of image, e.g. ``T2w``.
        extension: ``.nii.gz`` or ``.nii``.
    """

    entities: tuple[tuple[str, str], ...]
    suffix: str
    extension: str

    def of(self, *keys: str) -> dict[str, str | None]:
        """Values of some entities; none where one is absent."""
        return {key: dict(self.entities).get(key) for key in keys}


def parsed(name: str) -> Name | None:
    """The parts of a name; none where it is not that of a NIfTI image in BIDS."""
    found = _NAME.fullmatch(stem_of(name))
    if found is None or suffix_of(name) not in NIFTI:
        return None
    entities = [entity.split("-", 1) for entity in found["entities"].rstrip("_").split("_")]
    return Name(tuple((key, value) for key, value in entities), found["suffix"], suffix_of(name))


def suffix(modality: str) -> str:
    """What BIDS calls images of a modality: ``T2`` -> ``T2w``; others by their letters and digits."""
    plain = re.sub("[^A-Za-z0-9]", "", modality)
    return f"{plain.upper()}w" if plain.upper() in WEIGHTED else plain


def synthesised(name: Name, modality: str) -> str:
    """The output's name: the input's entities, ``desc-synthesised``, the new modality's suffix."""
    kept = [f"{key}-{value}" for key, value in name.entities if key != "desc"]
    return "_".join([*kept, f"desc-{MADE}", suffix(modality)]) + name.extension


def is_tree(folder: Path) -> bool:
    """Whether subjects lie directly in a folder."""
    return any(path.is_dir() for path in folder.glob("sub-*"))


def images(root: Path, kind: str | None = None) -> Iterator[Path]:
    """NIfTI images of the subjects, sorted.

    Args:
        kind: their suffix, e.g. ``T2w``; none: all.
    """
    for subject in sorted(path for path in root.glob("sub-*") if path.is_dir()):
        for path in sorted(subject.rglob("sub-*")):
            name = parsed(path.name)
            if name is not None and kind in (None, name.suffix) and not path.is_dir():
                yield path


def companion(root: Path, image: Path, kind: str) -> Path:
    """The scan of another kind of the same subject and session.

    Of several, the one whose other entities (``acq``, ``run``, ...) are the image's.

    Raises:
        UserError: there is none, or several to choose from.
    """
    name = parsed(image.name)
    assert name is not None  # `images` gave it
    subject = root / image.relative_to(root).parts[0]
    session = ("sub", "ses")
    near = [(path, found) for path in sorted(subject.rglob("sub-*")) if (found := parsed(path.name)) is not None]
    candidates = [
        (path, found) for path, found in near if found.suffix == kind and found.of(*session) == name.of(*session)
    ]
    if len(candidates) > 1:
        candidates = [(path, found) for path, found in candidates if found.entities == name.entities] or candidates
    if len(candidates) != 1:
        names = ", ".join(path.name for path, _ in candidates) or "none"
        raise UserError(f"{image}: needs one {kind} of the same subject and session, found {names}")
    return candidates[0][0]


def description(version: str, model: str) -> dict[str, Any]:
    """Content of ``dataset_description.json`` for a tree of outputs.

    Args:
        version: of this program.
        model: what the images were made by, for people.
    """
    return {
        "Name": "Synthesised images",
        "BIDSVersion": VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "equisynth", "Version": version, "Description": model}],
    }
