"""Cohorts: folders, BIDS trees, DICOM series, pictures, and the folder of the outputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from dicom_series import oblique, write_series
from wrong_inputs.entry import Arrange, Wrong, together
from wrong_inputs.images import photos
from wrong_inputs.workplace import MODEL, text

RECORD = {"model": {"uri": "models/another", "sha256": "0"}, "prepared": False, "precision": "no", "flips": "none"}


def _predict(images: str = "scans", output: str = "out", more: str = "", model: str = MODEL) -> str:
    return f"predict {images} --model {model} --output {output} {more}".strip() + " --device cpu"


def _scans(*names: str) -> Arrange:
    """Copies of the scan that nothing is wrong with."""

    def arrange(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "T2.nii.gz", folder / name)

    return arrange


def _empty(folder: Path) -> None:
    (folder / "scans").mkdir()


def _two_series(folder: Path) -> None:
    write_series(folder / "series", oblique(), 4)
    write_series(folder / "series", oblique((1.0, 1.0, 2.0)), 7)


def _grey(name: str) -> Arrange:
    return lambda folder: Image.fromarray(np.full((20, 20), 100, np.uint8)).save(folder / name)


def _checksum(folder: Path) -> None:
    content = bytearray((folder / "T2.nii.gz").read_bytes())
    content[-8] ^= 1
    (folder / "T2.nii.gz").write_bytes(content)


def _black(folder: Path) -> None:
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(folder / "black.tif")


ENTRIES = (
    # which images
    Wrong("cohort empty", "an empty folder", _predict(), ("scans", "no image", ".nii.gz", "DICOM", "BIDS"), _empty),
    Wrong(
        "cohort pattern",
        "a folder in which no name fits the pattern",
        _predict(more="--pattern *_T2.nii.gz"),
        ("scans", "*_T2.nii.gz", "no image"),
        _scans("scans/a.nii.gz"),
    ),
    Wrong(
        "cohort modality",
        "a BIDS tree without scans of the model's input",
        _predict(),
        ("scans", "sub-*_T2w.nii.gz", "--pattern"),
        _scans("scans/sub-1/anat/sub-1_T1w.nii.gz"),
    ),
    Wrong(
        "cohort absent",
        "one of several files does not exist",
        _predict("T2.nii.gz absent.nii.gz"),
        ("absent.nii.gz", "no such file"),
    ),
    Wrong(
        "cohort names",
        "two scans that would become one output",
        _predict(),
        ("a.nii", "a.nii.gz", "both become", "rename"),
        _scans("scans/a.nii.gz", "scans/a.nii"),
    ),
    # where to
    Wrong(
        "cohort output inside",
        "outputs among the inputs",
        _predict(output="scans/out"),
        ("--output scans/out", "lies in the input scans", "beside it"),
        _scans("scans/a.nii.gz"),
    ),
    Wrong(
        "cohort output file",
        "several images and one output file",
        _predict("T2.nii.gz mask.nii.gz", "PD.nii.gz"),
        ("--output PD.nii.gz", "several images", "folder"),
    ),
    Wrong(
        "cohort output of another model",
        "outputs that another model made",
        _predict(),
        ("a_synthesised-PD.nii.gz", "models/another", "--output", "--force"),
        together(_scans("scans/a.nii.gz"), text("out/a_synthesised-PD.json", json.dumps(RECORD))),
    ),
    Wrong(
        "cohort output of somebody",
        "an output that this program did not make",
        _predict(),
        ("a_synthesised-PD.nii.gz", "not made by equisynth", "--force"),
        _scans("scans/a.nii.gz", "out/a_synthesised-PD.nii.gz"),
    ),
    # options
    Wrong(
        "cohort mask",
        "one mask for many images",
        _predict(more="--mask mask.nii.gz"),
        ("--mask mask.nii.gz", "one image"),
        _scans("scans/a.nii.gz"),
    ),
    Wrong(
        "cohort T1",
        "companion scans in a folder without subjects",
        _predict(more="--t1 T1w"),
        ("--t1 T1w", "no BIDS tree"),
        _scans("scans/a.nii.gz"),
    ),
    Wrong(
        "pattern of one image",
        "a pattern for one image",
        _predict("T2.nii.gz", "PD.nii.gz", "--pattern *_T2.nii.gz"),
        ("--pattern *_T2.nii.gz", "several images", "T2.nii.gz", "PD.nii.gz", "leave it out"),
    ),
    Wrong(
        "pattern of files",
        "a pattern for files that are all named",
        _predict("T2.nii.gz", more="--pattern *_T2.nii.gz"),
        ("--pattern *_T2.nii.gz", "folders", "the file T2.nii.gz", "leave it out"),
    ),
    Wrong(
        "jobs of one image",
        "several jobs for one image",
        _predict("T2.nii.gz", "PD.nii.gz", "--jobs 4"),
        ("--jobs 4", "several images", "T2.nii.gz", "PD.nii.gz", "leave it out"),
    ),
    Wrong(
        "jobs and cluster",
        "several jobs here and a cluster",
        _predict(more="--jobs 4 --scheduler tcp://127.0.0.1:8786"),
        ("--jobs 4", "tcp://127.0.0.1:8786", "leave out"),
        _scans("scans/a.nii.gz"),
    ),
    Wrong(
        "cluster address",
        "an address that no dask scheduler has",
        _predict(more="--scheduler http://127.0.0.1:8786"),
        ("--scheduler http://127.0.0.1:8786", "dask scheduler", "tcp://127.0.0.1:8786"),
        _scans("scans/a.nii.gz"),
    ),
    Wrong(
        "precision unknown", "an unknown precision", _predict("T2.nii.gz", "PD.nii.gz", "--precision half"), ("half",)
    ),
    Wrong(
        "precision GPU",
        "a precision that only GPUs have",
        _predict("T2.nii.gz", "PD.nii.gz", "--precision fp16"),
        ("fp16", "GPU", "bf16"),
    ),
    Wrong(
        "flips untrained",
        "mirrors as in training, which had none",
        _predict("T2.nii.gz", "PD.nii.gz", "--flips trained"),
        ("--flips trained", "without mirrored images", "all"),
    ),
    # other formats
    Wrong(
        "dicom slices",
        "a DICOM series of which a slice lacks",
        _predict("series", "PD.nii.gz"),
        ("series", "lacks slices", "6 mm", "3 mm"),
        lambda folder: write_series(folder / "series", oblique(), without=(4,)),
    ),
    Wrong(
        "dicom several",
        "a folder of two DICOM series for one output",
        _predict("series", "PD.nii.gz"),
        ("series", "2 DICOM series", "0004-t2-tse", "0007-t2-tse"),
        _two_series,
    ),
    Wrong(
        "dicom none",
        "a folder without DICOM for one output",
        _predict("scans", "PD.nii.gz"),
        ("scans", "is a folder", "without a DICOM series"),
        _empty,
    ),
    Wrong(
        "picture grey",
        "a grey PNG for a model of colours",
        _predict("grey.png", "out.png", model="models/photos"),
        ("grey.png", "is grey", "colours (RGB)"),
        together(photos, _grey("grey.png")),
    ),
    Wrong(
        "picture grey TIFF",
        "a grey TIFF for a model of colours",
        _predict("grey.tif", "out.tif", model="models/photos"),
        ("grey.tif", "is grey", "colours (RGB)"),
        together(photos, _grey("grey.tif")),
    ),
    Wrong(
        "picture black",
        "a TIFF of zeros",
        _predict("black.tif", "out.tif", model="models/photos"),
        ("black.tif", "every pixel is zero"),
        together(photos, _black),
    ),
    Wrong(
        "picture damaged",
        "text named .png",
        _predict("a.png", "out.png", model="models/photos"),
        ("a.png", "cannot be read", "PNG or JPEG"),
        together(photos, text("a.png")),
    ),
    Wrong(
        "image checksum",
        "a .nii.gz whose checksum does not fit",
        _predict("T2.nii.gz", "PD.nii.gz"),
        ("T2.nii.gz", "cannot be read", "damaged"),
        _checksum,
    ),
)
