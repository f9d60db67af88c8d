"""Makes the three IXI archives from phantom heads, in the public archive's own layout and formats.

Each case is T1 on a sagittal grid of its own, and T2 and PD on one shared, slightly oblique axial grid, int16 with
an arbitrary gain, as scanners write them. PD is no function of T2's intensity alone: tissues that share a T2 intensity
differ in PD (fat and grey matter, deep grey and white matter, lesions), and the texture changes T2 and PD in
tissue-specific proportions, so that only spatial context tells them apart.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy import ndimage

from equisynth.config import Positive, Strict
from equisynth.datasets.head import TISSUES, HeadAtlas, Subject, head_atlas
from equisynth.datasets.randomness import named_random_state
from equisynth.datasets.splits import SPLITS, CaseCounts
from equisynth.files import atomic_path, write_json

MODALITIES = ("T1", "T2", "PD")

Whole = Annotated[int, Field(ge=0)]
Side = Annotated[int, Field(ge=16)]
FloatArray = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]

# Relative to white matter, in the order (T1, T2, PD): typical of 1.5-3 T spin echoes.
_CONTRAST = {
    "white": (1.00, 1.00, 1.00),
    "grey": (0.72, 1.50, 1.20),
    "deep_grey": (0.84, 1.05, 1.22),
    "csf": (0.24, 3.60, 1.25),
    "bone": (0.07, 0.05, 0.08),
    "marrow": (0.75, 0.80, 1.05),
    "fat": (1.15, 1.50, 1.60),
    "muscle": (0.50, 0.45, 0.95),
    "skin": (0.50, 0.75, 1.10),
    "vitreous": (0.20, 3.60, 1.35),
    "cord": (0.95, 1.00, 1.02),
    "lesion": (0.60, 2.00, 1.55),
}
# How strongly the texture changes each modality: T2 up and PD down in some tissues, together in others.
_TEXTURE = {
    "white": (0.03, 0.08, -0.07),
    "grey": (0.03, 0.08, 0.07),
    "deep_grey": (0.03, 0.06, 0.05),
    "csf": (0.02, 0.04, 0.00),
    "bone": (0.00, 0.00, 0.00),
    "marrow": (0.10, 0.15, 0.10),
    "fat": (0.08, 0.10, -0.08),
    "muscle": (0.08, 0.12, 0.08),
    "skin": (0.05, 0.05, 0.05),
    "vitreous": (0.02, 0.03, 0.00),
    "cord": (0.03, 0.03, 0.00),
    "lesion": (0.05, 0.10, 0.08),
}
_GAIN = {"T1": 420.0, "T2": 240.0, "PD": 520.0}
_NOISE = {"T1": 0.025, "T2": 0.03, "PD": 0.02}  # Rician, relative to white matter
_SITES = ("Guys", "HH", "IOP")


class PhantomSource(Strict):
    """``sources.ixi`` of kind ``phantom``."""

    kind: Literal["phantom"] = "phantom"
    seed: Whole = 0
    cases: CaseCounts = {"train": 6, "validate": 2, "test": 3}
    voxel_size: tuple[Positive, Positive, Positive] = (3.0, 3.0, 3.6)  # of T2 and PD, mm
    shape: tuple[Side, Side, Side] = (64, 72, 48)  # of T2 and PD, voxels
    incomplete_cases: Whole = 0  # training cases on top that lack their PD scan


def case_names(source: PhantomSource) -> dict[str, list[str]]:
    """Case ids (``IXI<id>-<site>-<number>``) of each split."""
    splits: dict[str, list[str]] = {}
    index = 0
    for split in SPLITS:
        count = source.cases[split] + (source.incomplete_cases if split == "train" else 0)
        splits[split] = [f"IXI{i + 2:03d}-{_SITES[i % 3]}-{700 + 7 * i:04d}" for i in range(index, index + count)]
        index += count
    return splits


def write_archives(source: PhantomSource, folder: Path, jobs: int = 1) -> dict[str, Path]:
    """Writes ``IXI-<T1|T2|PD>.tar`` and ``splits.json`` into ``folder``; returns the archive of each modality.

    The bytes depend on ``source`` alone, not on ``jobs``.
    """
    from joblib import Parallel, delayed

    folder.mkdir(parents=True, exist_ok=True)
    splits = case_names(source)
    lacking = set(splits["train"][source.cases["train"] :])
    paths = {modality: folder / f"IXI-{modality}.tar" for modality in MODALITIES}
    atlas = head_atlas(source.voxel_size)
    with (
        atomic_path(paths["T1"]) as t1,
        atomic_path(paths["T2"]) as t2,
        atomic_path(paths["PD"]) as pd,
        tarfile.open(t1, "w") as tar_t1,
        tarfile.open(t2, "w") as tar_t2,
        tarfile.open(pd, "w") as tar_pd,
    ):
        tars = dict(zip(MODALITIES, (tar_t1, tar_t2, tar_pd), strict=True))
        cases = sorted(case for cases in splits.values() for case in cases)
        made = Parallel(n_jobs=jobs, return_as="generator")(delayed(make_case)(source, case, atlas) for case in cases)
        for case, scans in zip(cases, made, strict=True):
            for modality, content in scans.items():
                if modality == "PD" and case in lacking:
                    continue
                member = tarfile.TarInfo(f"{case}-{modality}.nii.gz")  # no time, no owner: same bytes everywhere
                member.size = len(content)
                tars[modality].addfile(member, io.BytesIO(content))
    write_json(folder / "splits.json", splits)
    return paths


def make_case(source: PhantomSource, case: str, atlas: HeadAtlas | None = None) -> dict[str, bytes]:
    """One subject's three scans as the bytes of ``.nii.gz`` files; depends on (source, case) only."""
    random_state = named_random_state(source.seed, "phantom", case)
    subject = Subject.draw(atlas or head_atlas(source.voxel_size), random_state)
    axial = _axial_affine(source.shape, source.voxel_size, random_state)
    sagittal_shape, sagittal = _sagittal_grid(source, random_state)
    bias = _bias_field(source.shape, random_state)  # T2 and PD are echoes of one sequence: one coil, one field
    images = {m: (values * bias, axial) for m, values in _render(subject, source.shape, axial, ("T2", "PD")).items()}
    bias = _bias_field(sagittal_shape, random_state)
    images["T1"] = (_render(subject, sagittal_shape, sagittal, ("T1",))["T1"] * bias, sagittal)
    scans = {}
    for modality in MODALITIES:
        values, affine = images[modality]
        real, imaginary = random_state.standard_normal((2, *values.shape)) * _NOISE[modality]
        values = np.hypot(values + real, imaginary) * _GAIN[modality] * random_state.uniform(0.8, 1.25)
        scans[modality] = _nifti_gz(np.rint(values).astype(np.int16), affine)
    return scans


def _render(
    subject: Subject, shape: tuple[int, int, int], affine: Matrix, modalities: tuple[str, ...]
) -> dict[str, FloatArray]:
    """Noiseless intensities (*shape) relative to white matter: the tissues' contrasts, changed by the texture."""
    columns = [MODALITIES.index(modality) for modality in modalities]
    contrast = np.array([_CONTRAST[tissue] for tissue in TISSUES]).T[columns]  # (M, T)
    change = np.array([_TEXTURE[tissue] for tissue in TISSUES]).T[columns]
    sums, texture = subject.scan(shape, affine, np.concatenate([contrast, contrast * change]))
    plain, textured = np.split(sums, 2)
    return dict(zip(modalities, plain + texture * textured, strict=True))


def _bias_field(shape: tuple[int, int, int], random_state: np.random.RandomState) -> FloatArray:
    """A smooth gain of a few per cent over the volume."""
    coarse = random_state.standard_normal((4, 4, 4))
    field = ndimage.zoom(coarse, [n / 4 for n in shape], order=3, mode="nearest", grid_mode=True)
    gain: FloatArray = np.exp(0.04 * field / field.std()).astype(np.float32)
    return gain


def _axial_affine(
    shape: tuple[int, int, int], voxel_size: tuple[float, float, float], random_state: np.random.RandomState
) -> Matrix:
    """Axes to the left, the back and up, tilted a few degrees as operators tilt slices."""
    tilt = np.deg2rad(random_state.uniform(-4, 4))
    turn = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    return _centred(turn @ np.diag([-1.0, -1.0, 1.0]) @ np.diag(voxel_size), shape, (0.0, -18.0, 10.0))


def _sagittal_grid(source: PhantomSource, random_state: np.random.RandomState) -> tuple[tuple[int, int, int], Matrix]:
    """T1's own grid: axes to the back, up and the right, thicker slices, covering the same field of view."""
    in_plane, slice_ = source.voxel_size[0] * 1.05, source.voxel_size[0] * 1.28
    right, back, up = (n * v for n, v in zip(source.shape, source.voxel_size, strict=True))
    shape = (int(np.ceil(back / in_plane)), int(np.ceil(up / in_plane)) + 2, int(np.ceil(right / slice_)))
    axes = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]) @ np.diag([in_plane, in_plane, slice_])
    shift = random_state.uniform(-2, 2, size=3)
    return shape, _centred(axes, shape, (shift[0], shift[1] - 18.0, shift[2] + 10.0))


def _centred(axes: Matrix, shape: tuple[int, int, int], centre: tuple[float, float, float]) -> Matrix:
    """The affine of these axes (3, 3) whose volume centre lies at ``centre`` mm."""
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = np.array(centre) - axes @ ((np.array(shape) - 1) / 2)
    return affine


def _nifti_gz(values: npt.NDArray[np.int16], affine: Matrix) -> bytes:
    import nibabel

    image = nibabel.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=4, mtime=0)
