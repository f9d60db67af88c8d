"""Makes the CERMEP archive from phantom heads, in the public archive's own layout and formats.

Each case is a T1 and a CT on grids of their own. The CT lies a few mm and degrees away from the T1, and neck and face,
which no skull holds in place, have moved on top of that. Bone is bright on CT and dark, like air, on T1.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field
from scipy import ndimage

from equisynth.config import NonNegative, Positive, Strict
from equisynth.datasets.cermep import AIR, ARCHIVE, MEMBERS
from equisynth.datasets.head import TISSUES, HeadAtlas, Subject, head_atlas
from equisynth.datasets.randomness import named_random_state
from equisynth.datasets.splits import SPLITS, CaseCounts
from equisynth.files import atomic_path, write_json

Whole = Annotated[int, Field(ge=0)]
Side = Annotated[int, Field(ge=16)]
FloatArray = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.float64]

# Relative to white matter, and how much the texture changes it.
_T1 = {
    "white": (1.00, 0.03), "grey": (0.72, 0.03), "deep_grey": (0.84, 0.03), "csf": (0.24, 0.02), "bone": (0.07, 0.00),
    "marrow": (0.75, 0.10), "fat": (1.15, 0.08), "muscle": (0.50, 0.08), "skin": (0.50, 0.05), "vitreous": (0.20, 0.02),
    "cord": (0.95, 0.03), "lesion": (0.60, 0.05),
}  # fmt: skip
# Hounsfield units, and how many the texture changes.
_CT = {
    "white": (28, 2), "grey": (38, 2), "deep_grey": (38, 2), "csf": (8, 1), "bone": (1150, 120), "marrow": (420, 120),
    "fat": (-95, 8), "muscle": (55, 8), "skin": (15, 10), "vitreous": (10, 1), "cord": (34, 2), "lesion": (20, 3),
}  # fmt: skip
_T1_GAIN, _T1_NOISE = 420.0, 0.02  # noise: Rician, relative to white matter
_CT_NOISE = 12.0  # HU


class CermepPhantom(Strict):
    """``sources.cermep`` of kind ``phantom``."""

    kind: Literal["phantom"] = "phantom"
    seed: Whole = 0
    cases: CaseCounts = {"train": 4, "validate": 1, "test": 2}
    voxel_size: tuple[Positive, Positive, Positive] = (3.0, 3.0, 3.0)  # of T1, mm
    shape: tuple[Side, Side, Side] = (64, 72, 60)  # of T1, voxels
    rotation_degrees: NonNegative = 3.0  # of the CT about each axis, at most; at least half of it
    translation_mm: NonNegative = 4.0  # of the CT along each axis, at most; at least half of it
    soft_tissue_mm: NonNegative = 3.0  # standard deviation per axis of the shift of neck and face


def case_names(settings: CermepPhantom) -> dict[str, list[str]]:
    """Case ids (``sub-<4 digits>``) of each split."""
    numbers = iter(range(1, 1 + sum(settings.cases.values())))
    return {split: [f"sub-{next(numbers):04d}" for _ in range(settings.cases[split])] for split in SPLITS}


def make_phantoms(settings: CermepPhantom, folder: Path, jobs: int = 1) -> dict[str, Path]:
    """Writes the archive and ``splits.json`` into ``folder``; returns ``scans``: the archive.

    The bytes depend on ``settings`` alone, not on ``jobs``.
    """
    from joblib import Parallel, delayed

    folder.mkdir(parents=True, exist_ok=True)
    splits, path = case_names(settings), folder / ARCHIVE
    cases = sorted(case for cases in splits.values() for case in cases)
    atlas = head_atlas(settings.voxel_size)
    made = Parallel(n_jobs=jobs, return_as="generator")(delayed(make_case)(settings, case, atlas) for case in cases)
    with (
        atomic_path(path) as temporary,
        open(temporary, "wb") as file,
        # No time, no names, no owner: the same bytes everywhere. The scans are compressed already.
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for case, scans in zip(cases, made, strict=True):
            for modality, content in scans.items():
                member = tarfile.TarInfo(f"{MEMBERS}/{case}/{case}_space-pet_{modality}.nii.gz")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    write_json(folder / "splits.json", splits)
    return {"scans": path}


def make_case(settings: CermepPhantom, case: str, atlas: HeadAtlas | None = None) -> dict[str, bytes]:
    """One subject's ``T1w`` and ``ct`` as the bytes of ``.nii.gz`` files; depends on (settings, case) only."""
    random_state = named_random_state(settings.seed, "cermep phantom", case)
    subject = Subject.draw(atlas or head_atlas(settings.voxel_size), random_state)
    axial = _centred(np.diag(settings.voxel_size), settings.shape)

    values = _render(subject, settings.shape, axial, _T1) * _bias_field(settings.shape, random_state)
    real, imaginary = random_state.standard_normal((2, *settings.shape)) * _T1_NOISE
    t1 = np.hypot(values + real, imaginary) * _T1_GAIN * random_state.uniform(0.9, 1.1)

    moved = _moved(subject, settings, random_state)
    ct_shape, ct_affine = _ct_grid(settings)
    above = _render(moved, ct_shape, ct_affine, {tissue: (hu + 1000, change) for tissue, (hu, change) in _CT.items()})
    ct = np.maximum(above - 1000 + _CT_NOISE * random_state.standard_normal(ct_shape), AIR)
    return {"T1w": _nifti_gz(t1, axial), "ct": _nifti_gz(ct, ct_affine)}


def _render(
    subject: Subject, shape: tuple[int, int, int], affine: Matrix, contrast: dict[str, tuple[float, float]]
) -> FloatArray:
    """Noiseless values (*shape): each tissue's own, changed by the texture; air is zero."""
    weights = np.array([contrast[tissue] for tissue in TISSUES]).T
    (plain, textured), texture = subject.scan(shape, affine, weights)
    values: FloatArray = plain + texture * textured
    return values


def _moved(subject: Subject, settings: CermepPhantom, random_state: np.random.RandomState) -> Subject:
    """The same person in the CT scanner: another pose, and neck and face shifted smoothly."""
    amounts = random_state.uniform(0.5, 1, (2, 3)) * random_state.choice([-1.0, 1.0], (2, 3))
    angles = np.deg2rad(amounts[0] * settings.rotation_degrees)
    turn = np.eye(4)
    for axis, angle in enumerate(angles):
        first, second = (a for a in range(3) if a != axis)
        step = np.eye(4)
        step[[first, second], [first, second]] = np.cos(angle)
        step[first, second], step[second, first] = -np.sin(angle), np.sin(angle)
        turn = step @ turn
    turn[:3, 3] = amounts[1] * settings.translation_mm

    nodes = subject.change.shape[1:]  # a coarse grid over the atlas, whose corners are shared
    corner = -subject.atlas.indices(np.zeros(3, np.float32)) * subject.atlas.spacing
    extent = (np.array(subject.atlas.fractions.shape[1:]) - 1) * subject.atlas.spacing
    x, y, z = (
        (corner[a] + np.linspace(0, extent[a], nodes[a])).reshape([-1 if a == b else 1 for b in range(3)])
        for a in range(3)
    )
    # Distance from an ellipsoid around the skull, as a share of its radii: 0 inside, 1 well below.
    free = np.clip((np.sqrt((x / 82) ** 2 + ((y + 18) / 102) ** 2 + ((z - 10) / 84) ** 2) - 1) / 0.3, 0, 1)
    shift = random_state.standard_normal((3, *nodes))
    shift = np.stack([ndimage.gaussian_filter(component, 3.0) for component in shift])
    shift *= settings.soft_tissue_mm / shift.std()
    return replace(subject, pose=subject.pose @ turn, change=(subject.change + shift * free).astype(np.float32))


def _ct_grid(settings: CermepPhantom) -> tuple[tuple[int, int, int], Matrix]:
    """CT's own grid: axes to the left, the back and up, finer in plane, thicker slices, a wider field of view."""
    in_plane, slice_ = 0.8 * settings.voxel_size[0], 1.25 * settings.voxel_size[2]
    right, front, up = (n * v for n, v in zip(settings.shape, settings.voxel_size, strict=True))
    shape = (int(1.1 * right / in_plane), int(1.1 * front / in_plane), int(1.05 * up / slice_))
    return shape, _centred(np.diag([-in_plane, -in_plane, slice_]), shape)


def _bias_field(shape: tuple[int, int, int], random_state: np.random.RandomState) -> FloatArray:
    """A smooth gain of some per cent over the volume."""
    coarse = random_state.standard_normal((4, 4, 4))
    field = ndimage.zoom(coarse, [n / 4 for n in shape], order=3, mode="nearest", grid_mode=True)
    gain: FloatArray = np.exp(0.06 * field / field.std()).astype(np.float32)
    return gain


def _centred(axes: Matrix, shape: tuple[int, int, int]) -> Matrix:
    """The affine of these axes (3, 3) whose volume centre is that of the head, in mm."""
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = np.array([0.0, -18.0, 10.0]) - axes @ ((np.array(shape) - 1) / 2)
    return affine


def _nifti_gz(values: npt.NDArray[np.floating], affine: Matrix) -> bytes:
    import nibabel

    image = nibabel.Nifti1Image(np.rint(values).astype(np.int16), affine)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=4, mtime=0)
