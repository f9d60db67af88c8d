"""IXI: brain MRI T2 -> PD. From the public archives (or phantoms in their layout) to one prepared case.

`prepare_case` is arrays in, arrays out and follows the spec (datasets: "ixi: preparation of one case") step by step;
`IxiArchives` reads scans; `prepare_input` repeats for a single raw scan what training did to its inputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from equisynth.config import NonNegative, Positive, Strict
from equisynth.datasets.archives import CaseSkipped, open_archive
from equisynth.datasets.case_files import CaseFiles, case_files, why_doubled
from equisynth.datasets.randomness import named_random_state
from equisynth.datasets.raw_scan import PreparedInput, Scan, edge_shares, training_landmarks
from equisynth.datasets.scans import read_scan
from equisynth.datasets.splits import Splits
from equisynth.errors import UserError
from equisynth.geometry.warping import warp
from equisynth.preprocessing import intensity, morphology, resampling
from equisynth.preprocessing.body_mask import body_mask
from equisynth.preprocessing.brain_mask import brain_mask, robex_brain_mask
from equisynth.preprocessing.registration import Registration, register_rigid_then_bspline

MODALITIES = ("T1", "T2", "PD")

FloatArray = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]
Range = tuple[float, float]
Vector = tuple[float, float, float]
Whole = Annotated[int, Field(ge=0)]


class Deformation(Strict):
    """The simulated misalignment of the label (spec: datasets, ixi step 5). Defaults: as published."""

    velocity_mean_mm: Vector = (10.0, 10.0, -10.0)  # of the white noise, before smoothing; one per axis
    velocity_std_mm: NonNegative = 200.0  # of the white noise, before smoothing
    smoothing_mm: Positive = 10.0  # standard deviation of the smoothing
    rotation_degrees: Range = (2.0, 10.0)  # [least, most] about each axis
    translation_mm: Range = (2.0, 10.0)  # [least, most] along each axis


class IxiPreparation(Strict):
    """``datasets.ixi.preparation``. Defaults: as published; null ``splits``: those that come with the raw data."""

    seed: Whole = 0  # a case's deformation follows from this and its name alone
    deformation: Deformation = Deformation()  # the simulated misalignment of the label
    body_mask_closing: Whole = 8  # radius in voxels
    evaluation_dilation: Whole = 5  # radius in voxels
    bias_correction: bool = False  # N4, of each scan
    registration: Registration | None = Registration()  # of the deformed label to the input again; null: none
    robex_path: str | None = None  # the ROBEX program (runROBEX.sh), which finds the brain; null: by morphology
    splits: Splits | None = None  # null: those that come with the raw data


# --- raw archives


class IxiArchives:
    """The three archives (or folders), opened together; use as a context manager.

    Raises:
        UserError: one is absent, damaged, unsafe, or holds no scan of its modality.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths, self._stack = dict(paths), ExitStack()
        self._files: dict[str, CaseFiles] = {}

    def __enter__(self) -> IxiArchives:
        with ExitStack() as stack:
            for modality in MODALITIES:
                archive = stack.enter_context(open_archive(self._paths[modality]))
                pattern = re.compile(rf"(?:.*/)?([A-Za-z0-9][A-Za-z0-9._-]*)-{modality}\.nii(?:\.gz)?")
                files = case_files(archive, pattern)
                if not files.cases:
                    raise UserError(
                        f"{archive.path}: holds no scan named IXI<id>-<site>-<number>-{modality}.nii.gz "
                        f"({len(archive.names())} other files); is this the right archive?"
                    )
                self._files[modality] = files
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def cases(self) -> list[str]:
        """Sorted names (``IXI<id>-<site>-<number>``) of the cases that have each of the three scans, once."""
        return sorted(set.intersection(*(set(files.names) for files in self._files.values())))

    def incomplete_cases(self) -> list[str]:
        """Sorted names of the cases that lack a scan, or have one twice."""
        return sorted(self._known() - set(self.cases()))

    def full_name(self, case: str) -> str:
        """The full name of a case given as such or by its id alone (``IXI002``), where that stands for one case."""
        matches = self._meant(case)
        return matches[0] if len(matches) == 1 else case

    def read(self, case: str) -> dict[str, Scan]:
        """The scans of a case by modality.

        Raises:
            CaseSkipped: one is missing, stands there twice, or cannot be read; or the name stands for several cases.
        """
        meant = self._meant(case)
        if len(meant) > 1:
            raise CaseSkipped(f"stands for {len(meant)} cases ({', '.join(meant)}); give the full name of one")
        doubled = why_doubled(case, self._files.values())
        if doubled is not None:
            raise CaseSkipped(doubled)
        missing = [modality for modality, files in self._files.items() if case not in files.names]
        if missing:
            raise CaseSkipped(f"no {' and no '.join(missing)} scan in the archives")
        return {modality: read_scan(files.archive, files.names[case]) for modality, files in self._files.items()}

    def _known(self) -> set[str]:
        return set().union(*(files.cases for files in self._files.values()))

    def _meant(self, case: str) -> list[str]:
        """Sorted full names that a name may stand for."""
        known = self._known()
        return [case] if case in known else sorted(name for name in known if name.split("-")[0] == case)


# --- one case


def prepare_case(
    scans: Mapping[str, Scan], case: str, preparation: IxiPreparation, voxel_size: Vector
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """All arrays of one prepared case, and facts about it.

    Args:
        scans: T1, T2, PD.
        case: its name; with ``preparation.seed`` it fixes the random deformation.
        preparation: what to do.
        voxel_size: of the prepared images in mm.

    Returns:
        Role -> array: ``input``, ``label``, ``label_aligned`` (*S) float32, ``label_mask``, ``evaluation_mask`` (*S)
        uint8, perhaps ``label_registered`` and its mask; ``deformation``, ``inverse_deformation`` (3, *S) float32 in
        voxels, with
        ``label(p) = label_aligned(p + deformation(p))`` inside ``label_mask``;
        and JSON-like facts: ``body_quantiles`` and ``edge_shares`` of the input, ``orientation`` of the T2 scan,
        ``mean_displacement`` in voxels (evaluation mask), ``valid_ratio`` of the label.

    Raises:
        CaseSkipped: the geometry of T2 and PD differs, or no brain or white matter is found.
    """
    t1, t2, pd = (scans[modality] for modality in MODALITIES)
    _check_shared_grid(t2, pd)
    own = resampling.agreed_voxel_size(t2.voxel_size, voxel_size)
    try:
        brain, t1_values = _t1_on_grid(t1, _brain(t1, preparation.robex_path), t2)
        membership = intensity.white_matter_membership(t1_values, brain)
        images, bodies = {}, {}
        for modality, scan in (("T2", t2), ("PD", pd)):
            values = scan.values / intensity.white_matter_mean(scan.values, membership)
            bodies[modality] = body_mask(values, closing=preparation.body_mask_closing)
            if preparation.bias_correction:
                values = intensity.without_bias_field(values, bodies[modality])
                values = values / intensity.white_matter_mean(values, membership)
            images[modality] = values
    except UserError as error:
        raise CaseSkipped(str(error)) from None

    def resampled(values: npt.NDArray[Any]) -> FloatArray:
        return resampling.to_voxel_size(values, own, voxel_size)

    image, label_aligned = resampled(images["T2"]), resampled(images["PD"])
    evaluation = resampled(morphology.dilate(bodies["T2"], preparation.evaluation_dilation)) > 0
    pd_body = resampled(bodies["PD"]) > 0.5
    deformation, inverse = random_deformation(image.shape, voxel_size, case, preparation)
    valid = straightened_mask(pd_body, deformation)
    arrays: dict[str, npt.NDArray[Any]] = {
        "input": image,
        "label": _warp(label_aligned[None], deformation)[0] * valid,
        "label_aligned": label_aligned,
        "label_mask": valid,
        "evaluation_mask": evaluation.astype(np.uint8),
        "deformation": deformation,
        "inverse_deformation": inverse,
    }
    if preparation.registration is not None:
        arrays |= _registered_again(arrays, voxel_size, preparation.registration)
    t2_body = (resampled(bodies["T2"]) > 0.5).astype(np.uint8)
    facts = {
        "orientation": resampling.orientation(t2.affine),
        "body_quantiles": intensity.body_quantiles(image, t2_body),
        "edge_shares": edge_shares(t2_body),
        "mean_displacement": float(np.linalg.norm(deformation[:, evaluation], axis=0).mean()),
        "valid_ratio": float(valid.mean()),
    }
    return arrays, facts


def _registered_again(
    arrays: Mapping[str, npt.NDArray[Any]], voxel_size: Vector, settings: Registration
) -> dict[str, npt.NDArray[Any]]:
    """The deformed label registered to the input by elastix, as traditional methods train on it (step 7)."""
    affine = np.diag([*voxel_size, 1.0])
    try:
        found = register_rigid_then_bspline(arrays["input"], arrays["label"], affine, arrays["label_mask"], settings)
    except UserError as error:
        raise CaseSkipped(f"its label cannot be registered again: {error}") from None
    return {"label_registered": found.values, "label_registered_mask": found.mask}


def random_deformation(
    shape: Sequence[int], voxel_size: Vector, case: str, preparation: IxiPreparation
) -> tuple[FloatArray, FloatArray]:
    """The displacement field (3, *shape) in voxels of a case and its inverse, from (seed, case) alone."""
    from equisynth.geometry.random_deformations import noise_deformation  # compiled: predictions do without

    settings = preparation.deformation
    low, high = np.deg2rad(settings.rotation_degrees)
    return noise_deformation(
        shape,
        voxel_size,
        noise_mean=settings.velocity_mean_mm,
        noise_std=(settings.velocity_std_mm,) * 3,
        smoothing_std=(settings.smoothing_mm,) * 3,
        rotation=((float(low), float(high)),) * 3,
        translation=(settings.translation_mm,) * 3,
        random_state=named_random_state(preparation.seed, "deformation", case),
    )


def straightened_mask(body: npt.NDArray[Any], deformation: FloatArray) -> Mask:
    """Valid region (*S) of a deformed image as a box, so that no network can read the deformation off its border.

    The body's voxels in the first (last) slice of an axis are deformed like the image. From the innermost slice that
    any of them reaches outwards everything is invalid; a side whose border no body touches stays valid.

    Args:
        body: mask (*S) of the undeformed image.
        deformation: displacement field (n, *S) in voxels.
    """
    valid = np.ones(body.shape, dtype=np.uint8)
    for axis in range(body.ndim):
        for side in (0, -1):
            border = np.zeros((1, *body.shape), dtype=np.float32)
            here = (0, *(slice(None),) * axis, side)
            border[here] = body[here[1:]] > 0
            if not border.any():
                continue
            others = tuple(a for a in range(body.ndim) if a != axis)
            reached = np.flatnonzero((_warp(border, deformation)[0] > 0).any(axis=others))
            if reached.size:
                cut = slice(None, reached[-1] + 1) if side == 0 else slice(reached[0], None)
                valid[(slice(None),) * axis + (cut,)] = 0
    return valid


def _warp(volume: FloatArray, deformation: FloatArray) -> FloatArray:
    """``volume`` (C, *S) deformed by a displacement field (n, *S)."""
    with torch.no_grad():
        return warp(torch.from_numpy(volume)[None], torch.from_numpy(deformation)[None])[0].numpy()


def _brain(t1: Scan, robex_path: str | None = None) -> Mask:
    """Brain mask of a T1 on its own grid (step 1)."""
    if robex_path is None:
        return brain_mask(t1.values, t1.voxel_size)
    return robex_brain_mask(t1.values, t1.affine, robex_path)


def _t1_on_grid(t1: Scan, brain: Mask, target: Scan) -> tuple[Mask, FloatArray]:
    """T1's brain mask and values on the grid of another scan (step 1)."""
    shape, affine = target.values.shape, target.affine
    on_grid = resampling.to_grid(brain.astype(np.float32), t1.affine, shape, affine) > 0.5
    return on_grid.astype(np.uint8), resampling.to_grid(t1.values, t1.affine, shape, affine)


def _check_shared_grid(t2: Scan, pd: Scan) -> None:
    if t2.values.shape != pd.values.shape:
        raise CaseSkipped(f"T2 and PD differ in shape: {t2.values.shape} and {pd.values.shape}")
    corners = np.array([[0, 0, 0, 1], [*(n - 1 for n in t2.values.shape), 1]]).T
    apart = np.abs((t2.affine @ corners) - (pd.affine @ corners)).max()
    if not np.allclose(t2.voxel_size, pd.voxel_size, atol=1e-3) or apart > 0.1:
        raise CaseSkipped(f"T2 and PD differ in geometry: their corners are up to {apart:.2f} mm apart")


# --- one raw scan, for predictions

COMPANIONS = ("t1",)
BRAIN_IN_VIEW = 0.1
"""Smallest share of the T1's brain that the scan must show."""
T1_FACTOR = 2.5
"""With the right T1 no upper quantile of the body is as many times as high, or as low, as in the training scans."""


def constants(preparation: IxiPreparation, voxel_size: Vector, facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `prepare_input` needs, JSON-like; ``facts`` of the training cases."""
    return {
        "kind": "ixi",
        "voxel_size": list(voxel_size),
        "intensity": "white matter (fuzzy c-means on T1) = 1",
        "brain_mask": "morphology" if preparation.robex_path is None else "robex",
        **training_landmarks(facts),
        **preparation.model_dump(mode="json", exclude={"robex_path", "splits"}),
    }


def prepare_input(scan: Scan, preparation: Mapping[str, Any], t1: Scan | None = None) -> PreparedInput:
    """Intensities of a raw T2 scan as training's inputs have them, from the `constants` of the training set.

    With the subject's T1 (on a grid of its own) the white matter is found as in training; without it, the scan is
    scaled so that its intensities inside the body lie as the training set's do.

    Raises:
        UserError: no body or no white matter is found, or the T1 lies elsewhere.
    """
    closing, warnings = int(preparation["body_mask_closing"]), []
    membership = None if t1 is None else _white_matter_on_grid(t1, scan)
    if t1 is not None and preparation["brain_mask"] == "robex":
        warnings.append("training found brains by ROBEX, here by thresholds: the scale may differ by some per cent")

    reference = preparation["reference_body_quantiles"]

    def white_matter(values: FloatArray) -> tuple[float, Mask | None]:
        """And the body, where it is found along with it."""
        if membership is None:
            return intensity.white_matter_mean_without_t1(values, reference, closing)
        return intensity.white_matter_mean(values, membership), None

    scale, body = white_matter(scan.values)
    values = scan.values / np.float32(scale)
    if body is None:
        body = body_mask(values, closing=closing)
        _check_t1_fits(values, body, reference)
    if preparation["bias_correction"]:
        values = intensity.without_bias_field(values, body)
        again, _ = white_matter(values)
        scale, values = scale * again, values / np.float32(again)
    parameters = {
        "white_matter": scale,
        "white_matter_from": "body quantiles of the training scans" if t1 is None else "T1",
        "bias_correction": bool(preparation["bias_correction"]),
    }
    return PreparedInput(values, body, parameters, tuple(warnings))


def _white_matter_on_grid(t1: Scan, scan: Scan) -> FloatArray:
    """How much each voxel of the scan is white matter, from the T1 of the same subject."""
    brain = _brain(t1)
    seen, t1_values = _t1_on_grid(t1, brain, scan)
    share = float(seen.sum() * abs(np.linalg.det(scan.affine)) / (brain.sum() * abs(np.linalg.det(t1.affine))))
    if share < BRAIN_IN_VIEW:
        raise UserError(f"shows {share:.0%} of the T1's brain; expected a T1 of the same subject in the same position")
    return intensity.white_matter_membership(t1_values, seen)


def _check_t1_fits(values: FloatArray, body: Mask, reference: Sequence[float]) -> None:
    """A T1 that lies elsewhere takes air or bone for white matter: then the scaled scan is much too bright, or dark."""
    ratios = np.array(intensity.body_quantiles(values, body)) / reference
    upper = ratios[len(ratios) // 2 :]  # the lower ones are air, bone and noise
    if upper.max() > T1_FACTOR or upper.min() < 1 / T1_FACTOR:
        raise UserError(
            f"scaled by the T1's white matter, has {upper.min():.1f} to {upper.max():.1f} times the intensities of the "
            "training scans; expected a T1 of the same subject in the same position"
        )
