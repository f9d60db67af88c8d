"""Images, masks and outputs of `predict`."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import tifffile
import torch

from wrong_inputs.entry import Arrange, Wrong, together
from wrong_inputs.workplace import MODEL, SHAPE, gzipped, image, remove, single, text, truncate, values

INPUT, MASK, OUTPUT = "T2.nii.gz", "mask.nii.gz", "PD.nii.gz"


def predict(image: str = INPUT, model: str = MODEL, output: str = OUTPUT, more: str = "--device cpu") -> str:
    """The command line of a prediction from prepared files."""
    return f"predict {image} --model {model} --output {output} --prepared {more}".strip()


def _image(
    name: str, what: str, words: tuple[str, ...], *steps: Arrange, file: str = INPUT, output: str = OUTPUT
) -> Wrong:
    return Wrong(name, what, predict(file, output=output), (file, *words), together(*steps))


def _mask(name: str, what: str, words: tuple[str, ...], *steps: Arrange) -> Wrong:
    return Wrong(name, what, predict(more=f"--mask {MASK} --device cpu"), (MASK, *words), together(*steps))


def _complex(folder: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(values().astype(np.complex64), np.diag([2, 2, 2, 1])), folder / INPUT)


def _coloured(folder: Path) -> None:
    """Voxels of three 8-bit colours."""
    colours = np.zeros(SHAPE, dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, np.diag([2, 2, 2, 1])), folder / INPUT)


def _directory(folder: Path) -> None:
    (folder / INPUT).unlink()
    (folder / INPUT).mkdir()


def photos(folder: Path) -> None:
    """A model of photographs in three colours."""
    from equisynth.description import FORMAT, Description, write_description
    from equisynth.methods.base import build_method
    from equisynth.model import network_states, save_weights
    from mlflow_repository import make_settings

    colours = {"modality": "A", "unit": "8 bit", "signal_range": 255.0, "channels": 3, "mean": [0] * 3, "std": [1] * 3}
    data = {"n_dims": 2, "voxel_size": [1, 1], "input": colours, "label": colours, "licence": "none"}
    settings = make_settings(data=data)
    torch.manual_seed(0)
    save_weights(folder / "models/photos/model.safetensors", network_states(build_method(settings).networks))
    description = Description(format=FORMAT, settings=settings, preparation={}, best_epoch=1, selection=0.5)
    write_description(folder / "models/photos", description)


def _picture(name: str, what: str, words: tuple[str, ...], step: Arrange, more: str = "--device cpu") -> Wrong:
    command = predict("slide.tif", "models/photos", "out.tif", more)
    return Wrong(name, what, command, words, together(photos, step))


def _tiff(content: np.ndarray, name: str = "slide.tif") -> Arrange:
    return lambda folder: tifffile.imwrite(folder / name, content)


RGB = np.full((20, 20, 3), 100, np.uint8)

ENTRIES = (
    # the file
    _image("image absent", "an image that does not exist", ("no such file",), remove(INPUT)),
    _image("image folder", "a folder in place of an image", ("is a folder",), _directory),
    _image("image empty", "an empty image file", ("cannot be read", "Empty file"), text(INPUT, "")),
    _image("image text", "text named .nii.gz", ("cannot be read",), text(INPUT)),
    _image(
        "image gzipped text", "gzipped text named .nii.gz", ("cannot be read",), gzipped(INPUT, b"No image.\n" * 99)
    ),
    _image("image truncated", "a truncated .nii.gz", ("cannot be read", "again"), truncate(INPUT)),
    _image(
        "image truncated plain",
        "a truncated .nii",
        ("cannot be read", "again"),
        image("T2.nii", values),
        truncate("T2.nii"),
        file="T2.nii",
    ),
    _image(
        "image header only",
        "a .nii that ends within its header",
        ("cannot be read",),
        image("T2.nii", values),
        truncate("T2.nii", 0.01),
        file="T2.nii",
    ),
    _image(
        "image suffix",
        "an input of another format",
        ("must end with", ".nii.gz", ".tif", ".png", "DICOM"),
        text("T2.mgz"),
        file="T2.mgz",
    ),
    # its content
    _image("image NaN", "an image with NaN", ("not finite", "NaN"), image(INPUT, single(100, np.nan))),
    _image("image infinite", "an image with infinity", ("not finite", "infinity"), image(INPUT, single(100, np.inf))),
    _image(
        "image zero", "an image of zeros", ("every voxel is zero", "right file"), image(INPUT, lambda: np.zeros(SHAPE))
    ),
    _image(
        "image without voxels", "an image without a voxel", ("no voxel",), image(INPUT, lambda: np.zeros((0, 12, 12)))
    ),
    _image("image complex", "an image of complex numbers", ("complex64", "real numbers"), _complex),
    _image("image colours", "an image of coloured voxels", ("expected real numbers",), _coloured),
    _image(
        "image 2D",
        "a single slice for a model of volumes",
        ("(12, 12)", "expected one 3D image"),
        image(INPUT, lambda: values()[0]),
    ),
    _image(
        "image 4D",
        "a series of volumes",
        ("(12, 12, 12, 2)", "expected one 3D image", "split"),
        image(INPUT, lambda: np.stack([values()] * 2, -1)),
    ),
    _image(
        "image channels",
        "a volume of three channels for a model of one",
        ("(12, 12, 12, 1, 3)", "1 channel"),
        image(INPUT, lambda: np.stack([values()] * 3, -1)[..., None, :]),
    ),
    _image("image voxels", "voxels five times as large as in training", ("10", "2"), image(INPUT, values, 10.0)),
    Wrong(
        "image TIFF",
        "a picture for a model of volumes",
        predict("slide.tif", output="out.tif"),
        ("slide.tif", "3D", ".nii"),
        _tiff(RGB[..., 0]),
    ),
    # raw scans
    Wrong(
        "T1 absent",
        "a T1 scan that does not exist",
        predict(more="--t1 T1.nii.gz --device cpu").replace("--prepared ", ""),
        ("T1.nii.gz", "no such file"),
    ),
    Wrong(
        "T1 of prepared",
        "a T1 scan for an image that is prepared already",
        predict(more="--t1 mask.nii.gz --device cpu"),
        ("--t1", "--prepared"),
    ),
    # pictures
    _picture("picture text", "text named .tif", ("slide.tif", "cannot be read", "TIFF"), text("slide.tif")),
    _picture("picture empty", "an empty .tif", ("slide.tif", "cannot be read", "TIFF"), text("slide.tif", "")),
    _picture(
        "picture truncated",
        "a truncated .tif",
        ("slide.tif", "cannot be read"),
        together(_tiff(RGB), truncate("slide.tif")),
    ),
    _picture(
        "picture channels",
        "a picture of five channels for a model of three",
        ("slide.tif", "5 channels", "expects 3"),
        lambda folder: tifffile.imwrite(folder / "slide.tif", np.zeros((20, 20, 5), np.uint8), photometric="rgb"),
    ),
    _picture(
        "picture numbers",
        "a picture of floating point numbers",
        ("slide.tif", "float32", "8 or 16-bit"),
        _tiff(RGB.astype(np.float32)),
    ),
    _picture(
        "picture mask",
        "a picture's mask of another size",
        ("mask.tif", "(9, 9)", "(20, 20)"),
        together(_tiff(RGB), _tiff(np.ones((9, 9), np.uint8), "mask.tif")),
        "--mask mask.tif --device cpu",
    ),
    # masks
    _mask("mask absent", "a mask that does not exist", ("not found",), remove(MASK)),
    _mask("mask text", "text as a mask", ("cannot be read",), text(MASK)),
    _mask(
        "mask grid",
        "a mask on another grid",
        ("(12, 12, 6)", "(12, 12, 12)", INPUT),
        image(MASK, lambda: np.ones((12, 12, 6))),
    ),
    _mask("mask empty", "a mask of zeros", ("no voxel is valid", "above zero"), image(MASK, lambda: np.zeros(SHAPE))),
    # outputs and devices
    Wrong(
        "output suffix", "an output of another format", predict(output="PD.png"), ("PD.png", "must end with", ".nii.gz")
    ),
    Wrong(
        "output exists", "an output that exists already", predict(), (OUTPUT, "exists already", "--force"), text(OUTPUT)
    ),
    Wrong(
        "output folder",
        "an output that is a folder",
        predict(more="--force --device cpu"),
        (OUTPUT, "is a folder", "choose another name"),
        lambda folder: (folder / OUTPUT).mkdir(),
    ),
    Wrong(
        "output is input",
        "an output that is the input",
        predict(output=INPUT, more="--force --device cpu"),
        (INPUT, "input", "another name"),
    ),
    Wrong(
        "device unknown",
        "an unknown device",
        predict(more="--device tpu"),
        ("--device tpu", "cannot be used", "give cpu"),
    ),
)
