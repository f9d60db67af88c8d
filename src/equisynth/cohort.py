"""Which images of a cohort a model is to translate, and what the outputs are called. Nothing is written here.

Single files keep their name, folders their tree below the output folder, with the synthesised modality in the name:
``site/a_T2.nii.gz`` -> ``OUTPUT/site/a_T2_synthesised-PD.nii.gz``; in BIDS trees ``sub-01/anat/sub-01_T2w.nii.gz`` ->
``OUTPUT/sub-01/anat/sub-01_desc-synthesised_PDw.nii.gz``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from equisynth import bids
from equisynth.errors import UserError
from equisynth.images import dicom
from equisynth.images.formats import NIFTI, READABLE, output_suffix, stem_of, suffix_of


@dataclass(frozen=True)
class Wanted:
    """What is looked for.

    Attributes:
        input, label: modalities of the model.
        n_dims: 3: volumes; 2: pictures too.
        pattern: of names or of paths below a folder, e.g. ``*_T2.nii.gz``; none: all that a model can read, in BIDS
            trees all of the input's modality.
        t1: suffix of a companion scan in BIDS trees, e.g. ``T1w``.
    """

    input: str
    label: str
    n_dims: int
    pattern: str | None = None
    t1: str | None = None

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Of the files that the model may take."""
        return NIFTI if self.n_dims == 3 else READABLE


@dataclass(frozen=True)
class Case:
    """One image and what is to be made of it.

    Attributes:
        name: path below the input that was given, for people.
        output: path of the output.
        series: UID of the DICOM series, where ``image`` is a folder.
        problem: why it cannot be translated, known already.
    """

    name: str
    image: Path
    output: Path
    t1: Path | None = None
    series: str | None = None
    problem: str | None = None

    @property
    def record(self) -> Path:
        """The JSON beside the output."""
        return self.output.with_name(f"{stem_of(self.output.name)}.json")


def find_cases(inputs: Sequence[Path], output: Path, wanted: Wanted) -> list[Case]:
    """All images of the inputs, sorted within each folder.

    Raises:
        UserError: an input is absent or holds no image; outputs would lie among inputs or share a name.
    """
    several = sum(path.is_dir() for path in inputs) > 1
    cases: list[Case] = []
    for given in inputs:
        if given.is_dir():
            _check_apart(given, output)
            target = output / given.resolve().name if several else output
            cases += _tree(given, target, wanted) if bids.is_tree(given) else _folder(given, target, wanted)
        else:
            cases.append(_file(given, output, wanted))
    if wanted.pattern is not None and not any(path.is_dir() for path in inputs):
        found = f"the file {inputs[0]}" if len(inputs) == 1 else f"{len(inputs)} files"
        raise UserError(
            f"--pattern {wanted.pattern}: chooses from folders, found {found}; leave it out, or give a folder"
        )
    _check_names(cases)
    return cases


def is_one_image(inputs: Sequence[Path], output: Path) -> bool:
    """Whether one image is to become one file: the output's name says so."""
    if len(inputs) != 1 or suffix_of(output.name):
        return len(inputs) == 1
    return not inputs[0].is_dir() and bool(output.suffix) and not output.is_dir()


def check_one_image(image: Path, output: Path, pattern: str | None, jobs: int, scheduler: str | None) -> None:
    """Raises where an option that only several images need is given for one."""
    given = {"--pattern": pattern, "--jobs": jobs if jobs > 1 else None, "--scheduler": scheduler}
    for option, value in given.items():
        if value is not None:
            raise UserError(
                f"{option} {value}: is for several images, found one ({image}) and one file for --output ({output}); "
                "leave it out, or give a folder of images and a folder for --output"
            )


def is_bids(inputs: Sequence[Path]) -> bool:
    """Whether the outputs of these inputs make one BIDS tree."""
    return len(inputs) == 1 and inputs[0].is_dir() and bids.is_tree(inputs[0])


def output_name(name: str, label: str) -> str:
    """The output's name outside of BIDS trees: of ``a_T2.nii.gz``, ``a_T2_synthesised-PD.nii.gz``."""
    modality = re.sub("[^A-Za-z0-9]", "", label)
    return f"{stem_of(name)}_{bids.MADE}-{modality}{output_suffix(name)}"


def _file(path: Path, output: Path, wanted: Wanted) -> Case:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if suffix_of(path.name) not in wanted.suffixes:
        raise UserError(f"{path}: the input's name must end with one of {', '.join(wanted.suffixes)}, or be a folder")
    if wanted.t1 is not None:
        raise UserError(
            f"--t1 {wanted.t1}: several files have no companions; give a BIDS tree, or one file after another"
        )
    return Case(path.name, path, output / output_name(path.name, wanted.label))


def _tree(root: Path, output: Path, wanted: Wanted) -> list[Case]:
    """The cases of a BIDS tree."""
    kind = bids.suffix(wanted.input)
    found = [
        path for path in bids.images(root, None if wanted.pattern else kind) if _matches(path, root, wanted.pattern)
    ]
    if not found:
        expected = wanted.pattern or f"sub-*_{kind}.nii.gz"
        raise UserError(
            f"{root}: no image named {expected} below sub-*; expected {wanted.input} scans, or give --pattern"
        )
    return [_subject(path, root, output, wanted) for path in found]


def _subject(path: Path, root: Path, output: Path, wanted: Wanted) -> Case:
    name, below = bids.parsed(path.name), path.relative_to(root)
    assert name is not None
    target = output / below.parent / bids.synthesised(name, wanted.label)
    if wanted.t1 is None:
        return Case(below.as_posix(), path, target)
    try:
        return Case(below.as_posix(), path, target, t1=bids.companion(root, path, wanted.t1))
    except UserError as error:
        return Case(below.as_posix(), path, target, problem=str(error))


def _folder(root: Path, output: Path, wanted: Wanted) -> list[Case]:
    """The cases of any other folder: readable images, and DICOM series where the model takes volumes."""
    if wanted.t1 is not None:
        raise UserError(f"--t1 {wanted.t1}: {root} is no BIDS tree (sub-*), where companions are found by their names")
    cases = []
    for folder in _folders(root):
        for path in sorted(folder.iterdir()):
            usable = suffix_of(path.name) in wanted.suffixes and not path.name.startswith(".") and not path.is_dir()
            if usable and _matches(path, root, wanted.pattern):
                below = path.relative_to(root)
                cases.append(
                    Case(below.as_posix(), path, output / below.with_name(output_name(path.name, wanted.label)))
                )
        if wanted.n_dims == 3 and dicom.holds_dicom(folder):
            cases += _series(folder, root, output, wanted)
    if not cases:
        what = f"no image that matches --pattern {wanted.pattern}" if wanted.pattern else "no image"
        dicoms = ", DICOM series" if wanted.n_dims == 3 else ""
        raise UserError(f"{root}: holds {what}; expected {', '.join(wanted.suffixes)}{dicoms} or BIDS folders (sub-*)")
    return cases


def _series(folder: Path, root: Path, output: Path, wanted: Wanted) -> Iterator[Case]:
    """A case of each DICOM series in a folder, named after the folder, and after the series where there are several."""
    below = PurePosixPath(folder.relative_to(root).as_posix())
    name = below if below.parts else PurePosixPath(folder.resolve().name)
    found = dicom.series_of(folder)
    for series in found:
        own = name if len(found) == 1 else name / series.name
        if _fits(own, wanted.pattern):
            flat = own.name if len(found) == 1 else f"{name.name}_{series.name}"
            target = output / name.parent / output_name(flat, wanted.label)
            yield Case(str(own), folder, target, series=series.uid)


def _folders(root: Path) -> Iterator[Path]:
    """The folder and those below it, sorted, without hidden ones."""
    for name, folders, _ in os.walk(root):
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        yield Path(name)


def _matches(path: Path, root: Path, pattern: str | None) -> bool:
    return _fits(PurePosixPath(path.relative_to(root).as_posix()), pattern)


def _fits(below: PurePosixPath, pattern: str | None) -> bool:
    return pattern is None or fnmatch(below.name, pattern) or fnmatch(str(below), pattern)


def _check_apart(folder: Path, output: Path) -> None:
    """Outputs among the inputs would be inputs of the next run; BIDS keeps ``derivatives`` apart by its name."""
    inner, outer = Path(os.path.realpath(output)), Path(os.path.realpath(folder))
    if inner != outer and outer not in inner.parents:
        return
    below = inner.relative_to(outer).parts
    if below[:1] == ("derivatives",) and len(below) > 1 and bids.is_tree(folder):
        return
    better = f"{folder}/derivatives/NAME" if bids.is_tree(folder) else "a folder beside it"
    raise UserError(f"--output {output}: lies in the input {folder}, whose images would be mixed; choose {better}")


def _check_names(cases: Sequence[Case]) -> None:
    seen: dict[Path, Case] = {}
    for case in cases:
        other = seen.setdefault(case.record, case)
        if other is not case:
            raise UserError(
                f"{case.image} and {other.image} would both become {case.output.name} in {case.output.parent}; rename "
                "one, or give folders or a --pattern that tell them apart"
            )
