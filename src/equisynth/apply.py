"""``equisynth predict``: a model by name or folder, applied to one file of a user; a record beside the output."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from equisynth import raw_input
from equisynth.description import DESCRIPTION
from equisynth.errors import UserError
from equisynth.files import atomic_path, sha256, write_json
from equisynth.inference import translate_volume
from equisynth.model import WEIGHTS, Model, load_model
from equisynth.slides import predict_tiff
from equisynth.volumes import read_mask, read_volume, write_volume

NIFTI, TIFF = (".nii", ".nii.gz"), (".tif", ".tiff")
NOTICE = "not for clinical use"
SLIGHT = 1.05
"""Ratio of voxel sizes beyond which a user is told that a prepared image does not fit."""


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
        image: raw (NIfTI), or prepared.
        model: a registered model (``models:/ixi@champion``) or a folder with model.safetensors and model.json.
        output: on the image's grid; its record is `record_path`.
        mask: valid region on the image's grid.
        t1: T1 scan of the same subject, on any grid.
        prepared: the image is prepared as the training images were.
        device: by default a GPU if there is one.
        force: overwrite what exists.
    """

    image: Path
    model: str
    output: Path
    mask: Path | None = None
    t1: Path | None = None
    prepared: bool = False
    device: str | None = None
    force: bool = False

    @property
    def is_volume(self) -> bool:
        """NIfTI, not TIFF."""
        return str(self.image).endswith(NIFTI)

    @property
    def record_path(self) -> Path:
        """The JSON beside the output: ``out.nii.gz`` -> ``out.json``."""
        suffix = next(suffix for suffix in (".nii.gz", ".nii", *TIFF) if self.output.name.endswith(suffix))
        return self.output.with_name(self.output.name.removesuffix(suffix) + ".json")


@dataclass(frozen=True)
class Translation:
    """What is known of a translated image beside its values."""

    parameters: dict[str, Any]
    warnings: list[str]


def predict_file(request: Request) -> None:
    """Translates one image; the output has its geometry. Image and record are written both or neither.

    Raises:
        UserError: wrong names, existing output without ``force``, unreadable or unfitting files.
    """
    started = time.perf_counter()
    _check_names(request)
    _check_device(request.device)
    folder, origin = _find(request.model)
    model = load_model(folder, request.device)
    settings = model.description.settings
    unit = f"{settings.data.label.modality}, {settings.data.label.unit}"
    if settings.data.n_dims == 3 and not request.is_volume:
        raise UserError(f"{request.image}: is a picture, the model translates 3D volumes; give a .nii or .nii.gz")
    module = None
    if request.is_volume and not request.prepared:
        module = raw_input.preparation_module(model.description.preparation, settings.data)
    if request.t1 is not None and "t1" not in raw_input.companions_of(module):
        raise UserError(f"--t1 {request.t1}: the model's preparation uses no T1; leave it out")

    with atomic_path(request.output) as image, atomic_path(request.record_path) as record:
        done = _as_it_is(model, request, image, unit) if module is None else _raw(model, module, request, image, unit)
        origin |= {"experiment": settings.experiment, "scale": settings.scale, "sha256": sha256(folder / WEIGHTS)}
        write_json(record, _record(request, origin, done, unit, time.perf_counter() - started))
    for warning in done.warnings:
        print(f"equisynth: warning: {request.image}: {warning}", file=sys.stderr)
    print(request.output)


def _raw(model: Model, module: ModuleType, request: Request, output: Path, unit: str) -> Translation:
    """Prepares a raw scan, translates it and takes the result back to the scan's own grid."""
    description = model.description
    scan, volume = raw_input.read_scan(request.image)
    mask = None if request.mask is None else read_mask(request.mask, volume) > 0
    oriented, companions = volume.is_oriented, {}
    if request.t1 is not None:
        companions["t1"], t1_volume = raw_input.read_scan(request.t1)
        for path, known in ((request.image, oriented), (request.t1, t1_volume.is_oriented)):
            if not known:
                raise UserError(f"{path}: its header says nothing of orientation, needed with --t1; leave --t1 out")
    try:
        ready = raw_input.prepare(
            scan, module, description.preparation, description.settings.data, oriented, **companions
        )
    except UserError as error:
        raise UserError(f"{request.image}: {error}") from None
    valid = None if mask is None else ready.grid.forward(mask) > 0.5
    result = ready.grid.back(translate_volume(model.predict, ready.values, valid, description))
    write_volume(output, result if mask is None else result * mask, volume, unit)
    return Translation(ready.parameters, list(ready.warnings))


def _as_it_is(model: Model, request: Request, output: Path, unit: str) -> Translation:
    """Translates an image without preparing it."""
    data, warnings = model.description.settings.data, []
    if not request.prepared:
        why = "the model names no preparation of raw scans" if request.is_volume else "there is none of TIFF images"
        warnings.append(f"taken as it is, without any preparation ({why})")
    if request.is_volume:
        volume = read_volume(request.image, data.n_dims, data.input.channels)
        mask = None if request.mask is None else read_mask(request.mask, volume)
        sizes = [float(size) for size in volume.image.header.get_zooms()[: data.n_dims]]
        try:
            warnings += raw_input.voxel_size_warnings(sizes, data.voxel_size[: len(sizes)], SLIGHT)
        except UserError as error:
            raise UserError(f"{request.image}: {error}") from None
        warnings += raw_input.range_warnings(volume.values, None, {}, data)
        write_volume(output, translate_volume(model.predict, volume.values, mask, model.description), volume, unit)
    else:
        predict_tiff(model, request.image, output, request.mask)
    return Translation({}, warnings)


def _record(
    request: Request, origin: Mapping[str, Any], done: Translation, unit: str, seconds: float
) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "notice": NOTICE,
        "input": request.image.name,
        "t1": None if request.t1 is None else request.t1.name,
        "mask": None if request.mask is None else request.mask.name,
        "output": request.output.name,
        "unit": unit,
        "model": origin,
        "program": {"name": "equisynth", "version": version("equisynth")},
        "prepared": request.prepared,
        "parameters": done.parameters,
        "warnings": done.warnings,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
    }


def _check_names(request: Request) -> None:
    image, output = request.image, request.output
    if image.is_dir():
        raise UserError(f"{image}: is a folder; give one image")
    if not image.is_file():
        raise UserError(f"{image}: no such file")
    if not str(image).endswith(NIFTI + TIFF):
        raise UserError(f"{image}: the input's name must end with {', '.join(NIFTI)} (volumes) or {', '.join(TIFF)}")
    formats = NIFTI if request.is_volume else TIFF
    if not str(output).endswith(formats):
        raise UserError(f"{output}: the output's name must end with {' or '.join(formats)}, as the input's does")
    if request.t1 is not None and request.prepared:
        raise UserError(f"--t1 {request.t1}: a --prepared image needs no T1; leave out one of the two")
    if request.t1 is not None and not request.t1.is_file():
        raise UserError(f"--t1 {request.t1}: no such file")
    for path in (output, request.record_path):
        if os.path.isdir(path):
            raise UserError(f"{path}: is a folder; choose another name for the output")
        for given in (image, request.mask, request.t1):
            if given is not None and os.path.realpath(path) == os.path.realpath(given):
                raise UserError(f"{path}: is an input; choose another name for the output")
        if os.path.exists(path) and not request.force:
            raise UserError(f"{path}: exists already; choose another name or add --force")


def _check_device(device: str | None) -> None:
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--device {device}: cannot be used here ({reason:.120}); leave it out, or give cpu") from None


def _find(model: str) -> tuple[Path, dict[str, Any]]:
    """The model's folder, and where it comes from for the record."""
    if model.startswith("models:/"):
        from equisynth.registry import resolve

        found = resolve(model)
        return found.folder, {"uri": model, "name": found.name, "version": found.version, "run": found.run_id}
    folder = Path(model)
    if not model or not (folder / DESCRIPTION).is_file():
        problem = f"holds no {DESCRIPTION}" if folder.is_dir() else "no such folder"
        raise UserError(
            f"--model '{model}': {problem}; give models:/NAME@ALIAS, models:/NAME/VERSION or a model's folder"
        )
    return folder, {"uri": model, "name": None, "version": None, "run": None}
