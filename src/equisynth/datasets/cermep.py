"""CERMEP: head MRI T1 -> CT. From the public archive (or a phantom in its layout) to one prepared case.

`prepare_case` is arrays in, arrays out and follows the spec (datasets: "cermep: preparation of one case") step by step;
`CermepArchives` reads scans; `prepare_input` repeats for a single raw T1 what training did to its inputs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from equisynth.config import Count, Strict
from equisynth.datasets.archives import CaseSkipped, open_archive
from equisynth.datasets.case_files import CaseFiles, case_files, why_doubled
from equisynth.datasets.raw_scan import PreparedInput, Scan, edge_shares, training_landmarks
from equisynth.datasets.scans import read_scan
from equisynth.datasets.splits import Splits
from equisynth.errors import UserError
from equisynth.preprocessing import intensity, morphology, resampling
from equisynth.preprocessing.body_mask import body_mask
from equisynth.preprocessing.brain_mask import brain_mask, robex_brain_mask
from equisynth.preprocessing.registration import BSplineStep, register_bspline

ARCHIVE = "iDB-CERMEP-MRXFDG_MRI_ct.tar.gz"
MEMBERS = "home/pool/DM/TEP/CERMEP_MXFDG/BASE/DATABASE_SENT/MRI_CT/derivatives/coregistration"
MODALITIES = ("T1w", "ct")
AIR = -1024.0
"""CT value outside of the body."""
_VALIDATE = ("0006", "0014", "0003", "0029", "0023")
_TEST = ("0015", "0022", "0030", "0021", "0002", "0007", "0035", "0001", "0012", "0031", "0018", "0032")

FloatArray = npt.NDArray[np.float32]
Mask = npt.NDArray[np.uint8]
Vector = tuple[float, float, float]
Whole = Annotated[int, Field(ge=0)]


class CermepPreparation(Strict):
    """``datasets.cermep.preparation``. Defaults: as published; null ``splits``: the published ones.

    Radii are in voxels, thresholds in the scans' own units (CT: Hounsfield).
    """

    t1_threshold: float = 45.0  # of the body in the T1
    t1_closing: Whole = 8  # radius in voxels
    evaluation_dilation: Whole = 5  # of the evaluation mask around the body; radius in voxels
    ct_threshold: float = -350.0  # of the body in the CT, HU
    ct_closing: Whole = 3  # radius in voxels
    bias_iterations: tuple[Count, ...] = (400, 300, 200, 100)  # of N4, per level
    registration: BSplineStep = BSplineStep()  # of the CT to the T1, after the rigid one
    robex_path: str | None = None  # the ROBEX program (runROBEX.sh), which finds the brain; null: by morphology
    splits: Splits | None = None  # null: the published ones


class CermepPathSource(Strict):
    """``sources.cermep`` of kind ``path``: the archive, or a folder that holds it or the scans themselves.

    Attributes:
        invalid_regions: a folder or archive of hand-drawn masks on T1's grid, named
            ``sub-<4 digits>_space-pet_<mr|ct>_invalid_region_mask.nii.gz``; null: none.
    """

    kind: Literal["path"]
    path: Path
    invalid_regions: Path | None = None


def locate(settings: CermepPathSource) -> dict[str, Path]:
    """Where the user's raw data lie: ``scans`` and, where given, ``invalid_regions``.

    Raises:
        UserError: something is absent.
    """
    scans = Path(os.path.expanduser(settings.path))
    if (scans / ARCHIVE).is_file():
        scans = scans / ARCHIVE
    found = {"scans": scans}
    if settings.invalid_regions is not None:
        found["invalid_regions"] = Path(os.path.expanduser(settings.invalid_regions))
    for key, path in (("path", scans), ("invalid_regions", found.get("invalid_regions", scans))):
        if not path.exists():
            raise UserError(f"sources.cermep.{key}: {path} not found; expected {ARCHIVE} or a folder; check the path")
    return found


def published_splits(cases: Sequence[str]) -> dict[str, list[str]]:
    """The published split of these cases; who is in no list trains."""
    numbers = {case: case.removeprefix("sub-") for case in cases}
    return {
        "train": sorted(case for case, n in numbers.items() if n not in (*_VALIDATE, *_TEST)),
        "validate": sorted(case for case, n in numbers.items() if n in _VALIDATE),
        "test": sorted(case for case, n in numbers.items() if n in _TEST),
    }


# --- raw archives


class CermepArchives:
    """The archive (or folder) of scans and, if there are any, that of invalid regions; use as a context manager.

    Args:
        paths: ``scans``, and ``invalid_regions`` where there are some.

    Raises:
        UserError: one is absent, damaged, unsafe, or holds no scan.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._paths, self._stack = dict(paths), ExitStack()
        self._scans: dict[str, CaseFiles] = {}
        self._regions: dict[str, CaseFiles] = {}  # none, where none are given

    def __enter__(self) -> CermepArchives:
        with ExitStack() as stack:
            scans = stack.enter_context(open_archive(self._paths["scans"]))
            for modality in MODALITIES:
                self._scans[modality] = case_files(scans, _pattern(modality))
            if not self._known():
                raise UserError(
                    f"{scans.path}: holds no scan named sub-<4 digits>_space-pet_<T1w|ct>.nii.gz "
                    f"({len(scans.names())} other files); is this the right archive?"
                )
            if "invalid_regions" in self._paths:
                regions = stack.enter_context(open_archive(self._paths["invalid_regions"]))
                for modality in ("mr", "ct"):
                    name = f"{modality}_invalid_region_mask"
                    self._regions[name] = case_files(regions, _pattern(name))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def cases(self) -> list[str]:
        """Sorted names (``sub-<4 digits>``) of the cases that have both scans, each once."""
        return sorted(set.intersection(*(set(files.names) for files in self._scans.values())))

    def incomplete_cases(self) -> list[str]:
        """Sorted names of the cases that lack a scan, or have one twice."""
        return sorted(self._known() - set(self.cases()))

    def full_name(self, case: str) -> str:
        """The full name of a case given as such or by its digits alone (``0006``)."""
        return f"sub-{case}" if re.fullmatch(r"\d{4}", case) else case

    def read(self, case: str) -> dict[str, Scan]:
        """The scans of a case: ``T1w``, ``ct`` and, where given, ``<mr|ct>_invalid_region_mask``.

        Raises:
            CaseSkipped: one is missing, stands there twice, or cannot be read.
        """
        doubled = why_doubled(case, [*self._scans.values(), *self._regions.values()])
        if doubled is not None:
            raise CaseSkipped(doubled)
        missing = [modality for modality, files in self._scans.items() if case not in files.names]
        if missing:
            raise CaseSkipped(f"no {' and no '.join(missing)} scan in the archive")
        scans = {modality: read_scan(files.archive, files.names[case]) for modality, files in self._scans.items()}
        return scans | {
            name: read_scan(files.archive, files.names[case], is_mask=True)
            for name, files in self._regions.items()
            if case in files.names
        }

    def _known(self) -> set[str]:
        return set().union(*(files.cases for files in self._scans.values()))


def _pattern(name: str) -> re.Pattern[str]:
    """Of the files ``<case>_space-pet_<name>``, in whatever folder."""
    return re.compile(rf"(?:.*/)?(sub-\d{{4}})_space-pet_{name}\.nii(?:\.gz)?")


# --- one case


def prepare_case(
    scans: Mapping[str, Scan], case: str, preparation: CermepPreparation, voxel_size: Vector
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """All arrays of one prepared case, and facts about it.

    Args:
        scans: ``T1w``, ``ct`` and perhaps ``<mr|ct>_invalid_region_mask``.
        case: its name; nothing is random.
        preparation: what to do.
        voxel_size: of the prepared images in mm; a T1 of another size is resampled first.

    Returns:
        Role -> array. On T1's grid: ``input``, ``label``, ``label_registered`` (*S) float32, ``input_body_mask``,
        ``label_body_mask``, ``evaluation_mask`` and perhaps ``<input|label>_invalid_region_mask`` (*S) uint8. On CT's
        own grid: ``label_native`` (*T) float32, ``label_native_body_mask`` (*T) uint8. CT is -1024 outside of its body.
        And JSON-like facts: ``affine`` of T1's grid and ``native_affine`` of CT's (voxel index to mm),
        ``mean_displacement``: what the registration found, in voxels inside the evaluation mask; ``orientation``,
        ``body_quantiles`` and ``edge_shares`` of the input.

    Raises:
        CaseSkipped: no brain, no body or no white matter is found, or the registration fails.
    """
    t1, ct = _at_voxel_size(scans["T1w"], voxel_size), scans["ct"]
    try:
        label, label_body = _masked_ct(_resampled_ct(ct, t1), preparation)
        native, native_body = _masked_ct(ct.values, preparation)
        image, body = _prepared_t1(t1, preparation)
        registered = register_bspline(
            image,
            t1.affine,
            native,
            ct.affine,
            settings=preparation.registration,
            # CT's slices are thick: less smoothing across them (as published, where elastix takes it).
            moving_schedule=((8, 8, 2), (4, 4, 1), (1, 1, 1)),
            outside=AIR,
            with_displacement=True,
        )
    except UserError as error:
        raise CaseSkipped(str(error)) from None
    evaluation = morphology.dilate(body, preparation.evaluation_dilation)
    arrays: dict[str, npt.NDArray[Any]] = {
        "input": image,
        "label": label,
        "label_registered": registered.values,
        "label_native": native,
        "input_body_mask": body,
        "label_body_mask": label_body,
        "label_native_body_mask": native_body,
        "evaluation_mask": evaluation,
    }
    for modality, role in (("mr", "input"), ("ct", "label")):
        region = scans.get(f"{modality}_invalid_region_mask")
        if region is not None:
            on_grid = resampling.to_grid(region.values, region.affine, image.shape, t1.affine, order=0)
            arrays[f"{role}_invalid_region_mask"] = (on_grid > 0.5).astype(np.uint8)
    assert registered.displacement is not None
    facts = {
        "affine": t1.affine.tolist(),
        "native_affine": ct.affine.tolist(),
        "orientation": resampling.orientation(t1.affine),
        "body_quantiles": intensity.body_quantiles(image, body),
        "edge_shares": edge_shares(body),
        "mean_displacement": float(np.linalg.norm(registered.displacement[:, evaluation > 0], axis=0).mean()),
    }
    return arrays, facts


def _at_voxel_size(scan: Scan, voxel_size: Vector) -> Scan:
    """The scan with voxels of another size around the same centre; header differences by rounding stay as they are."""
    own = resampling.agreed_voxel_size(scan.voxel_size, voxel_size)
    if own == tuple(voxel_size):
        return scan
    values = resampling.to_voxel_size(scan.values, own, voxel_size)
    affine = scan.affine @ resampling.resampling_affine(scan.values.shape, own, voxel_size)
    return Scan(values, affine)


def _prepared_t1(t1: Scan, preparation: CermepPreparation) -> tuple[FloatArray, Mask]:
    """T1 without its bias field, white matter at one; and its body mask (steps 1 and 2)."""
    if preparation.robex_path is None:
        brain = brain_mask(t1.values, t1.voxel_size)
    else:
        brain = robex_brain_mask(t1.values, t1.affine, preparation.robex_path)
    body = body_mask(t1.values, preparation.t1_threshold, preparation.t1_closing)
    if not body.any():
        raise UserError(f"T1 shows no body: nothing is above t1_threshold ({preparation.t1_threshold:g})")
    values = intensity.without_bias_field(t1.values, body, preparation.bias_iterations)
    membership = intensity.white_matter_membership(values, brain)
    return values / np.float32(intensity.white_matter_mean(values, membership)), body


def _resampled_ct(ct: Scan, t1: Scan) -> FloatArray:
    """CT's values on T1's grid by cubic B-splines, air beyond its field of view."""
    above = resampling.to_grid(ct.values - np.float32(AIR), ct.affine, t1.values.shape, t1.affine, order=3)
    return above + np.float32(AIR)


def _masked_ct(values: FloatArray, preparation: CermepPreparation) -> tuple[FloatArray, Mask]:
    """CT with air outside of the body, and its body mask (step 3)."""
    body = body_mask(values, preparation.ct_threshold, preparation.ct_closing, opening=0, dilation=1)
    if not body.any():
        raise UserError(f"CT shows no body on T1's grid: nothing is above ct_threshold ({preparation.ct_threshold:g})")
    return np.where(body > 0, values, np.float32(AIR)), body


# --- one raw scan, for predictions


def constants(preparation: CermepPreparation, voxel_size: Vector, facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `prepare_input` needs, JSON-like; ``facts`` of the training cases."""
    return {
        "kind": "cermep",
        "voxel_size": list(voxel_size),
        "intensity": "N4, white matter (fuzzy c-means) = 1",
        "brain_mask": "morphology" if preparation.robex_path is None else "robex",
        **training_landmarks(facts),
        **preparation.model_dump(mode="json", exclude={"robex_path", "splits"}),
    }


def prepare_input(scan: Scan, preparation: Mapping[str, Any]) -> PreparedInput:
    """Intensities of a raw T1 scan as training's inputs have them, from the `constants` of the training set.

    Raises:
        UserError: no brain, no body or no white matter is found.
    """
    known = CermepPreparation.model_validate(
        {key: value for key, value in preparation.items() if key in CermepPreparation.model_fields}
    )
    values, body = _prepared_t1(scan, known)
    scale = float(np.median(scan.values[body > 0]) / np.median(values[body > 0]))
    parameters = {"white_matter": scale, "white_matter_from": "T1", "bias_correction": True}
    warnings: tuple[str, ...] = ()
    if preparation["brain_mask"] == "robex":
        warnings = ("training found brains by ROBEX, here by thresholds: the scale may differ by some per cent",)
    return PreparedInput(values, body, parameters, warnings)
