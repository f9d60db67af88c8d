"""``equisynth predict``: a model by name or folder, applied to one image of a user; a record beside the output.

Many images: ``cohort_run.py``, which calls `load` once and `translate` for each.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from equisynth import raw_input
from equisynth.errors import UserError
from equisynth.files import atomic_path, hash_json, sha256, write_json
from equisynth.found_model import Found, check_device, find
from equisynth.images import dicom
from equisynth.images.formats import NIFTI, PICTURE, READABLE, output_suffixes, stem_of, suffix_of
from equisynth.images.pictures import predict_picture
from equisynth.inference import Progress, translate_volume
from equisynth.model import load_model
from equisynth.predictors import Asked, asked, check_flips, check_precision
from equisynth.remaining import display
from equisynth.slides import predict_tiff
from equisynth.volumes import Volume, read_mask, read_volume, write_volume

NOTICE = "not for clinical use"
GPU_BATCH = 4
"""Tiles at once on a GPU."""
SLIGHT = 1.05
"""Ratio of voxel sizes beyond which a user is told that a prepared image does not fit."""


@dataclass(frozen=True)
class Request:
    """What a user asks for.

    Attributes:
        image: raw (NIfTI, or a folder of a DICOM series), prepared, or a picture.
        model: a registered model (``models:/ixi@champion``) or a folder with model.safetensors and model.json.
        output: on the image's grid; its record is `record_path`.
        mask: valid region on the image's grid.
        t1: T1 scan of the same subject, on any grid.
        prepared: the image is prepared as the training images were.
        device: by default a GPU if there is one.
        force: overwrite what exists.
        precision: see ``predictors.PRECISIONS``.
        batch: tiles at once; None: `GPU_BATCH` on a GPU, else 1, which is as fast and takes less memory.
        flips: see ``predictors.FLIPS``.
        series: UID of the DICOM series; None: the only one of the folder.
    """

    image: Path
    model: str
    output: Path
    mask: Path | None = None
    t1: Path | None = None
    prepared: bool = False
    device: str | None = None
    force: bool = False
    precision: str = "no"
    batch: int | None = None
    flips: str = "none"
    series: str | None = None

    @property
    def is_volume(self) -> bool:
        """NIfTI or DICOM, no picture."""
        return self.image.is_dir() or suffix_of(self.image.name) in NIFTI

    @property
    def record_path(self) -> Path:
        """The JSON beside the output: ``out.nii.gz`` -> ``out.json``."""
        return self.output.with_name(f"{stem_of(self.output.name)}.json")


@dataclass(frozen=True)
class Loaded:
    """A model ready to translate images as a user asked for it.

    Attributes:
        module: prepares raw volumes; None: they are taken as they are.
        unit: of the outputs.
        batch: tiles at once.
    """

    found: Found
    predictor: Asked
    module: ModuleType | None
    unit: str
    batch: int


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
    _check_names(request)
    check_device(request.device)
    loaded = load(find(request.model), request)
    with display() as shown:
        record = translate(loaded, request, shown.show(request.image.name, "tiles"))
    for warning in record["warnings"]:
        print(f"equisynth: warning: {request.image}: {warning}", file=sys.stderr)
    print(request.output)


def load(found: Found, request: Request) -> Loaded:
    """The model, on the device and in the way that was asked for; nothing of the image is looked at.

    Raises:
        UserError: damaged weights; a precision or mirrors that cannot be had.
    """
    model = load_model(found.folder, request.device)
    settings = found.description.settings
    check_precision(request.precision, model.device)
    check_flips(request.flips, settings)
    batch = request.batch or (GPU_BATCH if model.device.type == "cuda" else 1)
    unit = f"{settings.data.label.modality}, {settings.data.label.unit}"
    module = None if request.prepared else raw_input.preparation_module(found.description.preparation, settings.data)
    return Loaded(found, asked(model, request.precision, request.flips), module, unit, batch)


def translate(loaded: Loaded, request: Request, progress: Progress | None = None) -> dict[str, Any]:
    """Translates one image; writes output and record, and returns the record.

    The record takes its place before the output does and holds the output's hash: whatever kills the program on the
    way, a pair that fits is a finished one.

    Raises:
        UserError: unreadable or unfitting files.
    """
    started = time.perf_counter()
    settings = loaded.found.description.settings
    if settings.data.n_dims == 3 and not request.is_volume:
        raise UserError(f"{request.image}: is a picture, the model translates 3D volumes; give a .nii or .nii.gz")
    if request.t1 is not None and "t1" not in raw_input.companions_of(loaded.module):
        raise UserError(f"--t1 {request.t1}: the model's preparation uses no T1; leave it out")
    with atomic_path(request.output) as image, atomic_path(request.record_path) as record:
        is_raw = request.is_volume and loaded.module is not None
        done = (_raw if is_raw else _as_it_is)(loaded, request, image, progress)
        content = {
            "notice": NOTICE,
            "input": request.image.name,
            "t1": None if request.t1 is None else request.t1.name,
            "mask": None if request.mask is None else request.mask.name,
            "output": request.output.name,
            "unit": loaded.unit,
            "model": loaded.found.origin,
            "program": {"name": "equisynth", "version": version("equisynth")},
            **way(request),
            "device": str(loaded.predictor.model.device),
            "parameters": done.parameters,
            "warnings": done.warnings,
            "files": input_hashes(request) | {"output": sha256(image)},
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.perf_counter() - started, 3),
        }
        write_json(record, content)
    return content


def way(request: Request) -> dict[str, Any]:
    """What of a request changes its output, beside files and model; part of the record."""
    return {"prepared": request.prepared, "precision": request.precision, "flips": request.flips}


def input_hashes(request: Request) -> dict[str, str]:
    """SHA-256 of the files that are read, by role: what the output depends on."""
    given = {"input": request.image, "t1": request.t1, "mask": request.mask}
    return {role: _hash(path, request) for role, path in given.items() if path is not None}


def _hash(path: Path, request: Request) -> str:
    """Of a file, or of all files of a DICOM series."""
    if path.is_dir():
        series = dicom.find_series(path, request.series if path == request.image else None)
        return hash_json([sha256(file) for file in series.files], 64)
    return sha256(path)


def _raw(loaded: Loaded, request: Request, output: Path, progress: Progress | None) -> Translation:
    """Prepares a raw scan, translates it and takes the result back to the scan's own grid."""
    description, module = loaded.found.description, loaded.module
    assert module is not None
    volume, origin = _read(request)
    scan, oriented, companions = raw_input.as_scan(volume), volume.is_oriented, {}
    mask = None if request.mask is None else read_mask(request.mask, volume) > 0
    if request.t1 is not None:
        t1_volume = dicom.read_series(dicom.find_series(request.t1)) if request.t1.is_dir() else read_volume(request.t1)
        companions["t1"] = raw_input.as_scan(t1_volume)
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
    translated = translate_volume(
        loaded.predictor.predict, ready.values, valid, description, batch_size=loaded.batch, progress=progress
    )
    result = ready.grid.back(translated)
    write_volume(output, result if mask is None else result * mask, volume, loaded.unit)
    return Translation(ready.parameters | origin, list(ready.warnings))


def _as_it_is(loaded: Loaded, request: Request, output: Path, progress: Progress | None) -> Translation:
    """Translates an image without preparing it."""
    data, predictor, batch = loaded.found.description.settings.data, loaded.predictor, loaded.batch
    warnings: list[str] = []
    origin: dict[str, Any] = {}
    if not request.prepared:
        kind = "PNG and JPEG" if suffix_of(request.image.name) in PICTURE else "TIFF"
        why = "the model names no preparation of raw scans" if request.is_volume else f"there is none of {kind} images"
        warnings.append(f"taken as it is, without any preparation ({why})")
    if request.is_volume:
        volume, origin = _read(request, data.n_dims, data.input.channels)
        mask = None if request.mask is None else read_mask(request.mask, volume)
        sizes = [float(size) for size in volume.image.header.get_zooms()[: data.n_dims]]
        try:
            warnings += raw_input.voxel_size_warnings(sizes, data.voxel_size[: len(sizes)], SLIGHT)
        except UserError as error:
            raise UserError(f"{request.image}: {error}") from None
        warnings += raw_input.range_warnings(volume.values, None, {}, data)
        translated = translate_volume(
            predictor.predict, volume.values, mask, predictor.description, batch_size=batch, progress=progress
        )
        write_volume(output, translated, volume, loaded.unit)
    elif suffix_of(request.image.name) in PICTURE:
        predict_picture(predictor, request.image, output, request.mask, batch, progress)
    else:
        predict_tiff(predictor, request.image, output, request.mask, batch, progress)
    return Translation(origin, warnings)


def _read(request: Request, n_dims: int = 3, channels: int = 1) -> tuple[Volume, dict[str, Any]]:
    """The volume, and for the record where its geometry comes from if that is not NIfTI."""
    if not request.image.is_dir():
        return read_volume(request.image, n_dims, channels), {}
    if channels != 1:
        raise UserError(f"{request.image}: DICOM series have one channel, the model expects {channels}")
    series = dicom.find_series(request.image, request.series)
    found = {"series": series.uid, "name": series.name, "slices": len(series.files), "coordinates": dicom.COORDINATES}
    return dicom.read_series(series), {"dicom": found}


def _check_names(request: Request) -> None:
    image, output = request.image, request.output
    if image.is_dir():
        dicom.find_series(image, request.series)
    elif not image.is_file():
        raise UserError(f"{image}: no such file")
    elif not suffix_of(image.name):
        raise UserError(f"{image}: the input's name must end with one of {', '.join(READABLE)}, or be a DICOM folder")
    formats = output_suffixes(image.name)
    if suffix_of(output.name) not in formats:
        raise UserError(f"{output}: the output's name must end with {' or '.join(formats)}, for {image}")
    if request.t1 is not None and request.prepared:
        raise UserError(f"--t1 {request.t1}: a --prepared image needs no T1; leave out one of the two")
    if request.t1 is not None and not request.t1.exists():
        raise UserError(f"--t1 {request.t1}: no such file")
    for path in (output, request.record_path):
        if os.path.isdir(path):
            raise UserError(f"{path}: is a folder; choose another name for the output")
        for given in (image, request.mask, request.t1):
            if given is not None and os.path.realpath(path) == os.path.realpath(given):
                raise UserError(f"{path}: is an input; choose another name for the output")
        if os.path.exists(path) and not request.force:
            raise UserError(f"{path}: exists already; choose another name or add --force")
