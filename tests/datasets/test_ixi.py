"""IXI: what comes out of one case, step by step; what is wrong in archives and scans."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from equisynth.datasets.ixi import (
    CaseSkipped,
    Deformation,
    IxiArchives,
    IxiPreparation,
    Scan,
    constants,
    prepare_case,
    prepare_input,
    random_deformation,
    straightened_mask,
)
from equisynth.datasets.phantom import PhantomSource, case_names, make_case, write_archives
from equisynth.errors import UserError
from equisynth.geometry.warping import compose, warp
from equisynth.preprocessing import intensity
from equisynth.preprocessing.registration import BSplineStep, Registration, RigidStep
from equisynth.preprocessing.resampling import resampled_shape

SOURCE = PhantomSource(cases={"train": 1, "validate": 1, "test": 1}, voxel_size=(4.0, 4.0, 4.4), shape=(48, 54, 39))
DEMO = IxiPreparation(
    body_mask_closing=3,
    evaluation_dilation=2,
    registration=Registration(
        rigid=RigidStep(iterations=60, samples=1000, step_size_samples=500),
        bspline=BSplineStep(iterations=60, samples=1000, step_size_samples=500, grid_spacing=30),
    ),
    deformation=Deformation(
        velocity_mean_mm=(5, 5, -5), velocity_std_mm=60, rotation_degrees=(2, 5), translation_mm=(2, 6)
    ),
)
CASE = case_names(SOURCE)["train"][0]


@pytest.fixture(scope="module")
def scans() -> dict[str, Scan]:
    result = {}
    for modality, content in make_case(SOURCE, CASE).items():
        image = nibabel.Nifti1Image.from_bytes(gzip.decompress(content))
        result[modality] = Scan(image.get_fdata(dtype=np.float32), image.affine)
    return result


@pytest.fixture(scope="module")
def prepared(scans: dict[str, Scan]) -> tuple[dict[str, np.ndarray], dict]:
    return prepare_case(scans, CASE, DEMO, SOURCE.voxel_size)


def test_arrays(prepared: tuple[dict[str, np.ndarray], dict]) -> None:
    arrays, _ = prepared
    images = {"input", "label", "label_aligned", "label_registered"}
    masks = {"label_mask", "evaluation_mask", "label_registered_mask"}
    fields = {"deformation", "inverse_deformation"}
    assert set(arrays) == images | masks | fields
    for role, values in arrays.items():
        assert values.shape == ((3, *SOURCE.shape) if role in fields else SOURCE.shape)
        assert values.dtype == (np.uint8 if role in masks else np.float32)
    for role in masks:
        assert set(np.unique(arrays[role])) == {0, 1}


def test_registering_the_label_again_brings_it_closer_to_the_truth(
    prepared: tuple[dict[str, np.ndarray], dict],
) -> None:
    arrays, _ = prepared
    inside = (arrays["label_registered_mask"] & arrays["label_mask"] & arrays["evaluation_mask"]) > 0
    truth = arrays["label_aligned"][inside]
    before, after = (np.abs(arrays[role][inside] - truth).mean() for role in ("label", "label_registered"))
    assert inside.mean() > 0.2
    assert after < 0.8 * before


def test_white_matter_is_about_one(prepared: tuple[dict[str, np.ndarray], dict]) -> None:
    arrays, facts = prepared
    inside = arrays["evaluation_mask"] > 0
    assert 0.7 < np.median(arrays["label_aligned"][inside]) < 1.4
    assert facts["body_quantiles"] == sorted(facts["body_quantiles"])
    assert arrays["input"].max() < 6.5
    assert 0.3 < inside.mean() < 0.85


def test_label_is_the_aligned_label_deformed(prepared: tuple[dict[str, np.ndarray], dict]) -> None:
    arrays, _ = prepared
    aligned, field = (torch.from_numpy(arrays[role]) for role in ("label_aligned", "deformation"))
    expected = warp(aligned[None, None], field[None])[0, 0].numpy() * arrays["label_mask"]
    assert np.array_equal(arrays["label"], expected)
    inside = (arrays["evaluation_mask"] & arrays["label_mask"]) > 0
    assert np.abs(arrays["label"] - arrays["label_aligned"])[inside].mean() > 0.05


def test_inverse_undoes_the_deformation(prepared: tuple[dict[str, np.ndarray], dict]) -> None:
    arrays, _ = prepared
    forward, inverse = (torch.from_numpy(arrays[role])[None] for role in ("deformation", "inverse_deformation"))
    rest = compose(forward, inverse)[0].numpy()
    inner = (slice(None), *(slice(n // 3, -(n // 3)) for n in SOURCE.shape))
    assert np.abs(rest[inner]).max() < 0.25
    assert np.abs(arrays["deformation"][inner]).mean() > 1


@pytest.mark.parametrize("preparation", [IxiPreparation(), DEMO], ids=["published", "demo"])
def test_simulated_misalignment_at_demo_scale_is_at_least_four_voxels(preparation: IxiPreparation) -> None:
    """Inside a head-sized ellipsoid of the demo's grid, over its cases."""
    shape, voxel_size = (64, 72, 48), (3.0, 3.0, 3.6)
    squares = sum(((i - (n - 1) / 2) / (0.4 * n)) ** 2 for i, n in zip(np.indices(shape), shape, strict=True))
    lengths, folds = [], []
    for case in (case for cases in case_names(PhantomSource()).values() for case in cases):
        field, _ = random_deformation(shape, voxel_size, case, preparation)
        lengths.append(np.linalg.norm(field[:, squares < 1], axis=0).mean())
        jacobian = np.moveaxis(np.array([np.gradient(c) for c in field]), (0, 1), (-2, -1)) + np.eye(3)
        folds.append((np.linalg.det(jacobian) <= 0).mean())
    assert np.mean(lengths) >= 4
    assert min(lengths) > 3
    assert max(folds) < 1e-3


def test_deformation_follows_from_seed_and_case_alone() -> None:
    shape, voxel_size = (12, 13, 11), (4.0, 4.0, 4.0)

    def field(case: str, preparation: IxiPreparation) -> np.ndarray:
        return random_deformation(shape, voxel_size, case, preparation)[0]

    assert np.array_equal(field("a", DEMO), field("a", DEMO))
    assert not np.allclose(field("a", DEMO), field("b", DEMO))
    assert not np.allclose(field("a", DEMO), field("a", DEMO.model_copy(update={"seed": 1})))


def test_other_voxel_size_is_resampled_with_converted_units(scans: dict[str, Scan]) -> None:
    """Displacements are in voxels of the prepared image: twice as many at half the size."""
    fine = (3.0, 3.0, 3.3)
    arrays, facts = prepare_case(scans, CASE, DEMO, fine)
    shape = resampled_shape(SOURCE.shape, SOURCE.voxel_size, fine)
    assert arrays["input"].shape == arrays["label_mask"].shape == shape
    coarse = prepare_case(scans, CASE, DEMO, SOURCE.voxel_size)[1]
    ratio = facts["mean_displacement"] / coarse["mean_displacement"]
    assert 1.1 < ratio < 1.6  # about 4 / 3
    inside = arrays["evaluation_mask"] > 0
    assert 0.3 < inside.mean() < 0.85
    assert arrays["input"][inside].mean() > 5 * arrays["input"][~inside].mean()


def test_header_within_tolerance_is_not_resampled(scans: dict[str, Scan]) -> None:
    nearly = tuple(size + d for size, d in zip(SOURCE.voxel_size, (0.0004, -0.0004, 0.004), strict=True))
    arrays, _ = prepare_case(scans, CASE, DEMO, nearly)
    exact, _ = prepare_case(scans, CASE, DEMO, SOURCE.voxel_size)
    assert np.array_equal(arrays["input"], exact["input"])


def test_t2_and_pd_of_different_geometry_are_skipped(scans: dict[str, Scan]) -> None:
    pd = scans["PD"]
    with pytest.raises(CaseSkipped, match="differ in shape"):
        prepare_case({**scans, "PD": Scan(pd.values[:-1], pd.affine)}, CASE, DEMO, SOURCE.voxel_size)
    shifted = pd.affine.copy()
    shifted[0, 3] += 2
    with pytest.raises(CaseSkipped, match="2.00 mm apart"):
        prepare_case({**scans, "PD": Scan(pd.values, shifted)}, CASE, DEMO, SOURCE.voxel_size)


def test_bias_correction_is_an_option(
    scans: dict[str, Scan], prepared: tuple[dict[str, np.ndarray], dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    slope = np.linspace(1, 2, SOURCE.shape[0], dtype=np.float32).reshape(-1, 1, 1)
    monkeypatch.setattr(intensity, "without_bias_field", lambda values, mask: values * slope)
    arrays, _ = prepare_case(scans, CASE, DEMO.model_copy(update={"bias_correction": True}), SOURCE.voxel_size)
    for role in ("input", "label_aligned"):
        inside = prepared[0][role] > 0.1
        ratio = (arrays[role] / slope)[inside] / prepared[0][role][inside]
        assert np.allclose(ratio, ratio[0], rtol=1e-4)
        assert 0.5 < ratio[0] < 0.9  # white matter is made 1 again afterwards


# --- straightened mask


def translation(shape: tuple[int, ...], shift: tuple[float, ...]) -> np.ndarray:
    return np.broadcast_to(np.reshape(np.float32(shift), (3, 1, 1, 1)), (3, *shape)).copy()


def test_borders_that_no_body_touches_stay_valid() -> None:
    body = np.zeros((10, 11, 12), np.uint8)
    body[2:8, 2:9, 3:9] = 1
    assert straightened_mask(body, translation(body.shape, (2.0, -3.0, 1.0))).all()


def test_border_of_the_body_cuts_a_straight_slab() -> None:
    body = np.zeros((10, 11, 12), np.uint8)
    body[2:8, 2:9, 0:9] = 1  # touches the first slice of the last axis only
    valid = straightened_mask(body, translation(body.shape, (0.0, 0.0, -2.5)))
    assert not valid[:, :, :4].any()  # voxel 3 reads from 0.5: half of slice 0
    assert valid[:, :, 4:].all()
    valid = straightened_mask(body[:, :, ::-1].copy(), translation(body.shape, (0.0, 0.0, 2.5)))
    assert not valid[:, :, 8:].any()
    assert valid[:, :, :8].all()


def test_valid_region_is_a_box_for_any_deformation() -> None:
    body = np.ones((16, 17, 15), np.uint8)
    body[:, :, -1] = 0
    field, _ = random_deformation(body.shape, (3.0, 3.0, 3.0), "a", DEMO)
    valid = straightened_mask(body, field) > 0
    spans = [np.flatnonzero(valid.any(axis=tuple(b for b in range(3) if b != a))) for a in range(3)]
    assert valid.sum() == np.prod([len(s) for s in spans]) > 0
    assert valid[:, :, -1].any()  # nothing of the body in the last slice


# --- archives and scans


COUNTED = np.arange(64).reshape(4, 4, 4)


def nifti(values: np.ndarray, singular: bool = False) -> bytes:
    content = bytearray(nibabel.Nifti1Image(values, np.eye(4)).to_bytes())
    if singular:
        content[296:312] = bytes(16)  # srow_y: nibabel itself would not write it
    return gzip.compress(bytes(content))


def tar(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w") as opened:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
    return path


def archives_with(folder: Path, t1: bytes) -> dict[str, Path]:
    good = nifti(COUNTED.astype(np.int16))
    name = "IXI002-Guys-0828"
    other = {"IXI003-HH-0001": good}
    return {
        m: tar(folder / f"IXI-{m}.tar", **{f"{n}-{m}.nii.gz": c for n, c in {**other, name: content}.items()})
        for m, content in (("T1", t1), ("T2", good), ("PD", good))
    }


def test_cases_by_name_or_id(tmp_path: Path) -> None:
    write_archives(SOURCE.model_copy(update={"incomplete_cases": 1}), tmp_path)
    with IxiArchives({m: tmp_path / f"IXI-{m}.tar" for m in ("T1", "T2", "PD")}) as archives:
        assert len(archives.cases()) == 3
        (lacking,) = archives.incomplete_cases()
        assert archives.full_name("IXI002") == CASE
        assert archives.full_name("IXI999") == "IXI999"
        scan = archives.read(CASE)["T2"]
        assert scan.values.shape == SOURCE.shape
        assert np.allclose(scan.voxel_size, SOURCE.voxel_size)
        with pytest.raises(CaseSkipped, match="no PD scan"):
            archives.read(lacking)


def test_a_short_name_of_two_cases_names_them(tmp_path: Path) -> None:
    names = ("IXI002-Guys-0828", "IXI002-HH-1414", "IXI003-HH-0001")
    good = nifti(COUNTED.astype(np.int16))
    paths = {
        m: tar(tmp_path / f"IXI-{m}.tar", **{f"{name}-{m}.nii.gz": good for name in names}) for m in ("T1", "T2", "PD")
    }
    with IxiArchives(paths) as archives:
        assert archives.full_name("IXI003") == "IXI003-HH-0001"
        assert archives.full_name("IXI002") == "IXI002"
        with pytest.raises(CaseSkipped, match=r"for 2 cases \(IXI002-Guys-0828, IXI002-HH-1414\); give the full name"):
            archives.read("IXI002")


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"no gzip", "cannot be read"),
        (gzip.compress(b"no nifti"), "cannot be read"),
        (nifti(COUNTED.astype(np.int16))[:-20], "truncated|cannot be read"),
        (nifti(np.ones((4, 4, 4, 2), np.int16)), "expected three axes"),
        (nifti(np.full((4, 4, 4), np.nan, np.float32)), "not finite"),
        (nifti(COUNTED.astype(np.int16), singular=True), "singular"),
    ],
    ids=["no gzip", "no nifti", "truncated", "two volumes", "NaN", "singular affine"],  # gzip's bytes hold the time
)
def test_bad_scans_are_skipped_with_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    with IxiArchives(archives_with(tmp_path, content)) as archives:
        with pytest.raises(CaseSkipped, match=reason) as error:
            archives.read("IXI002-Guys-0828")
        assert "IXI002-Guys-0828-T1.nii.gz" in str(error.value)
        assert archives.read("IXI003-HH-0001")["T1"].values.shape == (4, 4, 4)


def test_scaled_integers_and_a_fourth_axis_of_one(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(COUNTED[..., None].astype(np.int16), np.eye(4))
    image.header.set_slope_inter(2.0, 3.0)
    with IxiArchives(archives_with(tmp_path, gzip.compress(image.to_bytes()))) as archives:
        values = archives.read("IXI002-Guys-0828")["T1"].values
    assert values.shape == (4, 4, 4)
    assert np.array_equal(values, 2 * COUNTED + 3)


def test_wrong_archive_is_named(tmp_path: Path) -> None:
    paths = archives_with(tmp_path, b"")
    with (
        pytest.raises(UserError, match=r"IXI-T1\.tar: holds no scan named .*-T2\.nii\.gz"),
        IxiArchives({**paths, "T2": paths["T1"]}),
    ):
        pass


# --- one raw scan


@pytest.mark.parametrize("with_t1", [True, False])
def test_a_raw_scan_is_prepared_like_the_inputs(
    scans: dict[str, Scan], prepared: tuple[dict[str, np.ndarray], dict], with_t1: bool
) -> None:
    arrays, facts = prepared
    known = constants(DEMO, SOURCE.voxel_size, [facts])
    result = prepare_input(scans["T2"], known, scans["T1"] if with_t1 else None)
    ratio = np.median(result.values / np.maximum(arrays["input"], 1e-3))
    assert abs(ratio - 1) < (1e-5 if with_t1 else 0.02)
    assert result.warnings == ()


@pytest.mark.parametrize("with_t1", [True, False])
def test_bias_correction_of_a_raw_scan(scans: dict[str, Scan], monkeypatch: pytest.MonkeyPatch, with_t1: bool) -> None:
    """As in training, white matter is made 1 again afterwards."""
    slope = np.linspace(1, 2, SOURCE.shape[0], dtype=np.float32).reshape(-1, 1, 1)
    monkeypatch.setattr(intensity, "without_bias_field", lambda values, mask: values * slope)
    preparation = DEMO.model_copy(update={"bias_correction": True})
    arrays, facts = prepare_case(scans, CASE, preparation, SOURCE.voxel_size)
    known = constants(preparation, SOURCE.voxel_size, [facts])
    result = prepare_input(scans["T2"], known, scans["T1"] if with_t1 else None)
    ratio = np.median(result.values / np.maximum(arrays["input"], 1e-3))
    assert abs(ratio - 1) < (1e-5 if with_t1 else 0.02)


def test_constants_of_several_cases(prepared: tuple[dict[str, np.ndarray], dict]) -> None:
    facts = prepared[1]
    assert facts["orientation"] == "LPS"
    assert np.array_equal(np.array(facts["edge_shares"]) > 0.1, [[False, False], [False, False], [True, False]])
    other = {**facts, "orientation": "RAS", "edge_shares": [[0.5, 0], [0, 0], [0, 0]]}
    known = constants(DEMO, SOURCE.voxel_size, [other, facts, facts])
    assert known["orientation"] == "LPS"
    assert known["edge_shares"][0] == [0.5, facts["edge_shares"][0][1]]
    assert known["edge_shares"][2][0] == pytest.approx(facts["edge_shares"][2][0], abs=1e-6)
