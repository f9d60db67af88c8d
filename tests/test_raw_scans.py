"""`equisynth predict` of raw scans: as of prepared ones, whatever their gain, axes, obliqueness and voxel size."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from scipy import ndimage

from equisynth import cohort_run
from equisynth.apply import NOTICE, Request, predict_file
from equisynth.datasets.head import head_atlas
from equisynth.datasets.ixi import IxiPreparation, constants, prepare_case
from equisynth.datasets.phantom import PhantomSource, case_names, make_case
from equisynth.datasets.raw_scan import Scan
from equisynth.description import DESCRIPTION, FORMAT, Description, write_description
from equisynth.errors import UserError
from equisynth.files import sha256
from equisynth.methods.base import build_method
from equisynth.model import network_states, save_weights
from test_training import settings

SOURCE = PhantomSource(cases={"train": 1, "validate": 1, "test": 1}, voxel_size=(5.0, 5.0, 6.0), shape=(40, 48, 32))
PREPARATION = IxiPreparation(body_mask_closing=3, evaluation_dilation=0, registration=None)
SIGNAL_RANGE = 6.5
LIMIT = 0.02 * SIGNAL_RANGE


class Phantom:
    """A subject whom the model has not seen, raw and prepared, and a model trained (it seems) on another one.

    The model moves the image by a voxel along two axes and changes no value: its output depends on the scale, on the
    orientation and on the voxel size of what it is given.
    """

    def __init__(self, folder: Path) -> None:
        atlas, names = head_atlas(SOURCE.voxel_size), case_names(SOURCE)
        facts = prepare_case(self._scans(names["train"][0], atlas), "train", PREPARATION, SOURCE.voxel_size)[1]
        self.scans = self._scans(names["test"][0], atlas)
        arrays = prepare_case(self.scans, "test", PREPARATION, SOURCE.voxel_size)[0]
        self.preparation = constants(PREPARATION, SOURCE.voxel_size, [facts])
        self.body = arrays["evaluation_mask"] > 0
        self.model = str(write_model(folder / "model", self.preparation))
        self.folder, self.count = folder, 0
        self.t2, self.t1 = (self.write(self.image(modality)) for modality in ("T2", "T1"))
        aligned = nibabel.Nifti1Image(arrays["input"], np.diag([*SOURCE.voxel_size, 1.0]))
        self.prepared = self.write(aligned)
        self.expected = self.predict(self.prepared, prepared=True).get_fdata(dtype=np.float32)

    @staticmethod
    def _scans(case: str, atlas: Any) -> dict[str, Scan]:
        images = {
            modality: nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
            for modality, content in make_case(SOURCE, case, atlas).items()
        }
        return {m: Scan(image.get_fdata(dtype=np.float32), image.affine) for m, image in images.items()}

    def image(self, modality: str = "T2", gain: float = 1.0) -> Any:
        scan = self.scans[modality]
        return nibabel.Nifti1Image(scan.values * np.float32(gain), scan.affine)

    def path(self, suffix: str = ".nii.gz") -> Path:
        self.count += 1
        return self.folder / f"{self.count}{suffix}"

    def write(self, image: Any) -> Path:
        nibabel.save(image, path := self.path())
        return path

    def predict(self, image: Path, **options: Any) -> Any:
        """The prediction, checked to lie where its input does."""
        request = Request(image, self.model, self.path(), device="cpu", **options)
        predict_file(request)
        given, found = nibabel.load(image), nibabel.load(request.output)
        assert found.shape == given.shape
        assert np.array_equal(found.affine, given.affine)
        for key in ("qform_code", "sform_code", "pixdim", "xyzt_units"):
            assert np.array_equal(found.header[key], given.header[key]), key
        assert found.header["descrip"].item().decode() == "PD, relative to white matter"
        return found

    def record(self) -> dict[str, Any]:
        """Of the last prediction."""
        return dict(json.loads((self.folder / f"{self.count}.json").read_text()))

    def apart(self, found: np.ndarray) -> float:
        """Mean absolute error in the body against the prediction of the prepared image."""
        return float(np.abs(found - self.expected)[self.body].mean())


def write_model(folder: Path, preparation: dict[str, Any], **changes: Any) -> Path:
    """A network without norms whose weights hand the first channel on; two convolutions shift by a voxel."""
    t2, pd = ({"modality": m, "clip": [0, 6.5], "signal_range": SIGNAL_RANGE, "unit": "relative to white matter"}
              for m in ("T2", "PD"))  # fmt: skip
    data = {"n_dims": 3, "voxel_size": SOURCE.voxel_size, "input": t2, "label": pd, "licence": "none", **changes}
    chosen = settings(
        method="supervised", data=data, patch_size=[16] * 3, inference_stride=[12] * 3, fusing_mask_smoothing=2.0,
        features={"i2i": [2, 2]}, normalization_groups=None, loss={"similarity_weight": 1.0},
    )  # fmt: skip
    states = {name: torch.zeros_like(values) for name, values in network_states(build_method(chosen).networks).items()}
    states["i2i.initial_block.conv1.weight"][0, 0, 2, 1, 1] = 1
    states["i2i.initial_block.conv2.weight"][0, 0, 1, 1, 1] = 1
    states["i2i.up_blocks.0.block.conv1.weight"][0, 2, 1, 2, 1] = 1  # behind the two channels from below
    states["i2i.up_blocks.0.block.conv2.weight"][0, 0, 1, 1, 1] = 1
    states["i2i.final_convolution.weight"][0, 0] = 1
    save_weights(folder / "model.safetensors", states)
    description = Description(format=FORMAT, settings=chosen, preparation=preparation, best_epoch=1, selection=0.5)
    write_description(folder, description)
    return folder


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Phantom:
    return Phantom(tmp_path_factory.mktemp("phantom"))


def turned(image: Any, codes: str) -> Any:
    """The same image stored with other axes."""
    return image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(codes)))


def rotated(image: Any, degrees: float) -> Any:
    """The same voxels, the patient turned in the scanner."""
    a = np.deg2rad(degrees)
    turn = np.array([[1, 0, 0, 5], [0, np.cos(a), -np.sin(a), -7], [0, np.sin(a), np.cos(a), 3], [0, 0, 0, 1.0]])
    return nibabel.Nifti1Image(np.asarray(image.dataobj), turn @ image.affine)


def coarser(values: np.ndarray, factor: float) -> np.ndarray:
    """Linear, around the centre."""
    size = [int((n - 1) / factor) + 1 for n in values.shape]
    offset = [(n - 1) / 2 - factor * (m - 1) / 2 for n, m in zip(values.shape, size, strict=True)]
    return ndimage.affine_transform(values, [factor] * 3, offset, tuple(size), order=1)


def coarser_image(image: Any, factor: float) -> Any:
    values = np.asarray(image.dataobj)
    small = coarser(values, factor)
    affine = image.affine @ np.diag([factor, factor, factor, 1.0])
    centre = image.affine @ [*((np.array(values.shape) - 1) / 2), 1]
    affine[:3, 3] += (centre - affine @ [*((np.array(small.shape) - 1) / 2), 1])[:3]
    return nibabel.Nifti1Image(small, affine)


def test_the_comparison_can_fail(phantom: Phantom) -> None:
    """Another scale, another orientation or a shift by one voxel are far outside of the limit."""
    assert phantom.apart(1.2 * phantom.expected) > LIMIT
    for flipped in (phantom.expected[::-1], phantom.expected[:, ::-1], np.roll(phantom.expected, 1, axis=2)):
        assert phantom.apart(flipped) > LIMIT
    values = np.asarray(nibabel.load(phantom.prepared).dataobj)
    mirrored = phantom.write(nibabel.Nifti1Image(values[::-1], np.diag([*SOURCE.voxel_size, 1.0])))
    assert phantom.apart(phantom.predict(mirrored, prepared=True).get_fdata()[::-1]) > LIMIT


@pytest.mark.parametrize("with_t1", [False, True])
@pytest.mark.parametrize("gain", [1.0, 1000.0, 0.001])
def test_raw_and_prepared_give_the_same(phantom: Phantom, gain: float, with_t1: bool) -> None:
    raw = phantom.write(phantom.image(gain=gain))
    found = phantom.predict(raw, t1=phantom.t1 if with_t1 else None)
    assert phantom.apart(found.get_fdata()) < (1e-4 if with_t1 else LIMIT)
    assert phantom.record()["warnings"] == []


@pytest.mark.parametrize("codes", ["RAS", "LPI", "PIR", "SAL", "IRP"])
def test_axes_permuted_and_flipped(phantom: Phantom, codes: str) -> None:
    found = phantom.predict(phantom.write(turned(phantom.image(), codes)))
    assert phantom.apart(turned(found, "LPS").get_fdata()) < LIMIT
    assert phantom.record()["parameters"]["orientation"] == {"input": codes, "model": "LPS"}
    assert phantom.record()["warnings"] == []


def test_t1_and_t2_in_any_orientation(phantom: Phantom) -> None:
    t1 = phantom.write(turned(phantom.image("T1", gain=3.0), "RSP"))
    found = phantom.predict(phantom.write(turned(phantom.image(), "AIL")), t1=t1)
    assert phantom.apart(turned(found, "LPS").get_fdata()) < 1e-4


@pytest.mark.parametrize("degrees", [-25, 40])
def test_oblique_scans(phantom: Phantom, degrees: float) -> None:
    raw = phantom.write(rotated(phantom.image(), degrees))
    assert phantom.apart(phantom.predict(raw).get_fdata()) < LIMIT
    t1 = phantom.write(rotated(phantom.image("T1"), degrees))
    assert phantom.apart(phantom.predict(raw, t1=t1).get_fdata()) < 1e-3


@pytest.mark.parametrize("with_t1", [False, True])
def test_another_voxel_size(phantom: Phantom, with_t1: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """At 1.5 x the voxel size, compared on the coarse grid."""
    raw = phantom.write(coarser_image(phantom.image(), 1.5))
    found = phantom.predict(raw, t1=phantom.t1 if with_t1 else None).get_fdata()
    expected, body = coarser(phantom.expected, 1.5), coarser(phantom.body.astype(np.float32), 1.5) > 0.5
    assert np.abs(found - expected)[body].mean() < LIMIT
    assert np.abs(found - np.roll(expected, 1, axis=1))[body].mean() > LIMIT
    warnings = phantom.record()["warnings"]
    assert warnings[0].startswith("voxel size 7.5 x 7.5 x 9 mm, the model was trained on 5 x 5 x 6 mm")
    assert "voxel size 7.5" in capsys.readouterr().err
    assert phantom.record()["parameters"]["resampled"]


def test_slight_differences_of_the_header_are_silent(phantom: Phantom) -> None:
    image = phantom.image()
    near = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([1.1, 0.9, 1.0, 1]))
    phantom.predict(phantom.write(near))
    assert phantom.record()["warnings"] == []
    assert phantom.record()["parameters"]["resampled"]


@pytest.mark.parametrize("factor", [3.2, 0.3])
def test_far_voxel_sizes_are_refused(phantom: Phantom, factor: float) -> None:
    image = turned(phantom.image(), "PIR")
    far = phantom.write(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([1, factor, 1, 1])))
    output = phantom.path()
    with pytest.raises(UserError, match=r"nii.gz: voxel size 5 x 5 x .*trained on 5 x 5 x 6 mm.*factor of 3") as error:
        predict_file(Request(far, phantom.model, output, device="cpu"))
    assert "\n" not in str(error.value)
    assert not output.exists()
    assert not Path(str(output).replace(".nii.gz", ".json")).exists()


def test_the_record(phantom: Phantom) -> None:
    phantom.predict(phantom.t2, t1=phantom.t1)
    record = phantom.record()
    weights = sha256(Path(phantom.model) / "model.safetensors")
    assert record["model"] == {
        "uri": phantom.model, "name": None, "version": None, "run": None, "experiment": "toy", "scale": "demo",
        "sha256": weights,
    }  # fmt: skip
    assert record["notice"] == NOTICE == "not for clinical use"
    assert record["unit"] == "PD, relative to white matter"
    assert record["program"]["version"]
    assert record["input"] == phantom.t2.name
    assert record["t1"] == phantom.t1.name
    assert not record["prepared"]
    assert record["parameters"]["kind"] == "ixi"
    assert record["parameters"]["white_matter_from"] == "T1"
    assert record["parameters"]["white_matter"] > 50  # the phantoms' gain
    assert record["parameters"]["voxel_size"] == {"input": [5, 5, 6], "model": [5, 5, 6]}
    assert not record["parameters"]["resampled"]
    assert record["date"][:2] == "20"
    assert record["date"].endswith("+00:00")
    assert record["seconds"] > 0
    phantom.predict(phantom.prepared, prepared=True)
    record = phantom.record()
    assert record["prepared"]
    assert (record["parameters"], record["warnings"]) == ({}, [])


def test_a_mask_is_on_the_grid_of_the_scan(phantom: Phantom) -> None:
    mask = np.zeros(SOURCE.shape, np.uint8)
    mask[:, 10:, :] = 1
    image = turned(phantom.image(), "PIR")
    path = phantom.write(turned(nibabel.Nifti1Image(mask, phantom.image().affine), "PIR"))
    found = turned(phantom.predict(phantom.write(image), mask=path), "LPS").get_fdata()
    assert not found[:, :10].any()
    inside = phantom.body.copy()
    inside[:, :12] = False  # the model looks a voxel further
    assert np.abs(found - phantom.expected)[inside].mean() < LIMIT


# --- warnings


def test_a_cropped_body_is_told(phantom: Phantom) -> None:
    image = phantom.image()
    cropped = phantom.write(nibabel.Nifti1Image(np.asarray(image.dataobj)[:, : SOURCE.shape[1] // 2], image.affine))
    phantom.predict(cropped)
    (edge,) = (text for text in phantom.record()["warnings"] if "edge of the field of view" in text)
    assert "back (" in edge
    assert "front (" not in edge


def test_another_modality_is_told(phantom: Phantom) -> None:
    phantom.predict(phantom.t1)
    assert any("is this a T2 scan?" in text for text in phantom.record()["warnings"])


def test_clipped_values_are_told(phantom: Phantom, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.array(phantom.image().dataobj)
    values[phantom.body & (np.random.RandomState(0).rand(*values.shape) < 0.03)] *= 20
    phantom.predict(phantom.write(nibabel.Nifti1Image(values, phantom.image().affine)))
    assert any("outside of the model's range 0 to 6.5" in text for text in phantom.record()["warnings"])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(phantom.record()["warnings"])
    assert all(line.startswith("equisynth: warning: ") for line in lines)


def test_a_header_without_orientation_is_told(phantom: Phantom) -> None:
    image = phantom.image()
    bare = nibabel.Nifti1Image(np.asarray(image.dataobj), None)
    bare.header.set_zooms(image.header.get_zooms())
    path = phantom.write(bare)
    assert nibabel.load(path).header["qform_code"] == nibabel.load(path).header["sform_code"] == 0
    assert phantom.apart(phantom.predict(path).get_fdata()) < LIMIT
    assert "axes are taken to be LPS" in phantom.record()["warnings"][0]
    with pytest.raises(UserError, match="says nothing of orientation, needed with --t1"):
        predict_file(Request(path, phantom.model, phantom.path(), t1=phantom.t1, device="cpu"))


# --- refusals


def test_wrong_t1(phantom: Phantom, tmp_path: Path) -> None:
    request = Request(phantom.t2, phantom.model, tmp_path / "out.nii", t1=phantom.t1, device="cpu")
    image = phantom.image("T1")
    far = image.affine.copy()
    far[0, 3] += 500
    beside = image.affine.copy()
    beside[0, 3] += 120  # in the air beside the head
    no_brain = phantom.write(nibabel.Nifti1Image(np.ones((20, 20, 20), np.float32), np.diag([8.0, 8, 8, 1])))
    plain = write_model(tmp_path / "plain", {})
    (tmp_path / "t.tif").touch()
    wrong = {
        "absent.nii: no such file": replace(request, t1=tmp_path / "absent.nii"),
        "needs no T1": replace(request, prepared=True),
        "uses no T1": replace(request, model=str(plain)),
        "0% of the T1's brain": replace(request, t1=phantom.write(nibabel.Nifti1Image(np.asarray(image.dataobj), far))),
        "scaled by the T1": replace(request, t1=phantom.write(nibabel.Nifti1Image(np.asarray(image.dataobj), beside))),
        "T1": replace(request, t1=no_brain),
    }
    for message, asked in wrong.items():
        before = set(tmp_path.iterdir())
        with pytest.raises(UserError, match=message) as error:
            predict_file(asked)
        assert "\n" not in str(error.value)
        assert set(tmp_path.iterdir()) == before


def test_an_unknown_kind_and_a_missing_orientation(phantom: Phantom, tmp_path: Path) -> None:
    for preparation, message in (
        ({**phantom.preparation, "kind": "xray"}, "kind 'xray', unknown"),
        ({key: value for key, value in phantom.preparation.items() if key != "orientation"}, "states no orientation"),
    ):
        model = write_model(tmp_path / "model", preparation)
        with pytest.raises(UserError, match=message):
            predict_file(Request(phantom.t2, str(model), tmp_path / "out.nii", device="cpu"))
        assert not (tmp_path / "out.nii").exists()


# --- the base installation

PIPELINE_ONLY = (
    "dvc", "optuna", "accelerate", "joblib", "numba", "itk", "nilearn", "matplotlib", "mlflow", "sqlalchemy",
    "threadpoolctl", "torchvision", "pytorch_fid", "pandas", "skimage",
)  # fmt: skip
WITHOUT_PIPELINE = f"""
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {PIPELINE_ONLY!r}:
            raise ModuleNotFoundError(f"{{name}} is not part of the base installation", name=name)

sys.meta_path.insert(0, Refuse())
from equisynth.cli import main
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as done:
        assert not done.code, done.code
"""


def test_base_dependencies_are_enough(phantom: Phantom, tmp_path: Path) -> None:
    assert json.loads((Path(phantom.model) / DESCRIPTION).read_text())["preparation"]["kind"] == "ixi"

    options = ["--model", phantom.model, "--device", "cpu", "--output"]
    calls = [
        ["predict", str(phantom.t2), *options, str(tmp_path / "raw.nii"), "--t1", str(phantom.t1)],
        ["predict", str(phantom.prepared), *options, str(tmp_path / "prepared.nii"), "--prepared"],
        ["predict", str(phantom.t2), str(phantom.t1), *options, str(tmp_path / "cohort")],
    ]
    command = [sys.executable, "-c", WITHOUT_PIPELINE, json.dumps(calls)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert phantom.apart(nibabel.load(tmp_path / "raw.nii").get_fdata()) < 1e-4
    assert phantom.apart(nibabel.load(tmp_path / "prepared.nii").get_fdata()) == 0


def test_in_a_bids_tree_each_subject_has_its_own_t1(phantom: Phantom, tmp_path: Path) -> None:
    """A cohort's outputs are those of the scans one by one, here with the white matter found on the T1."""
    for subject, gain in (("sub-1", 1.0), ("sub-2", 3.0)):
        folder = tmp_path / "in" / subject / "anat"
        folder.mkdir(parents=True)
        nibabel.save(phantom.image("T2", gain), folder / f"{subject}_T2w.nii.gz")
        nibabel.save(phantom.image("T1"), folder / f"{subject}_T1w.nii.gz")
    request = Request(Path(), phantom.model, tmp_path / "out", device="cpu")
    assert cohort_run.run([tmp_path / "in"], request, t1="T1w") == 0
    expected = phantom.predict(phantom.t2, t1=phantom.t1).get_fdata()
    for subject in ("sub-1", "sub-2"):
        output = tmp_path / "out" / subject / "anat" / f"{subject}_desc-synthesised_PDw.nii.gz"
        assert np.abs(nibabel.load(output).get_fdata() - expected).max() < 0.02
        record = json.loads(output.with_name(f"{subject}_desc-synthesised_PDw.json").read_text())
        assert record["t1"] == f"{subject}_T1w.nii.gz"
        assert record["parameters"]["white_matter_from"] == "T1"
        assert set(record["files"]) == {"input", "t1", "output"}
