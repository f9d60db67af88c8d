"""CERMEP: the phantom archive, what comes out of one case, step by step; what is wrong in archives and scans."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from joblib import parallel_config

from equisynth.datasets.archives import CaseSkipped
from equisynth.datasets.cermep import (
    AIR,
    ARCHIVE,
    MEMBERS,
    CermepArchives,
    CermepPathSource,
    CermepPreparation,
    constants,
    locate,
    prepare_case,
    prepare_input,
    published_splits,
)
from equisynth.datasets.cermep_phantom import CermepPhantom, make_case, make_phantoms
from equisynth.datasets.raw_scan import Scan
from equisynth.errors import UserError
from equisynth.files import read_json
from equisynth.preprocessing import resampling
from equisynth.preprocessing.body_mask import body_mask
from equisynth.preprocessing.registration import BSplineStep

SIZE = (5.0, 5.0, 5.5)
SOURCE = CermepPhantom(cases={"train": 1, "validate": 1, "test": 1}, voxel_size=SIZE, shape=(40, 46, 36))
CASE = "sub-0001"
QUICK = CermepPreparation(
    t1_closing=3,
    evaluation_dilation=2,
    bias_iterations=(10,),
    registration=BSplineStep(
        iterations=40, samples=2000, step_size_samples=500, grid_spacing=30, sample_region=100, bending_weight=500
    ),
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_phantoms(SOURCE, tmp_path_factory.mktemp("cermep"))["scans"]


@pytest.fixture(scope="module")
def scans(archive: Path) -> dict[str, Scan]:
    with CermepArchives({"scans": archive}) as opened:
        return opened.read(CASE)


@pytest.fixture(scope="module")
def prepared(scans: dict[str, Scan]) -> tuple[dict[str, np.ndarray], dict]:
    return prepare_case(scans, CASE, QUICK, SIZE)


def ct_of(change: dict[str, float]) -> Scan:
    """The case's CT with other motions."""
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(make_case(SOURCE.model_copy(update=change), CASE)["ct"]))
    return Scan(image.get_fdata(dtype=np.float32), image.affine)


@pytest.fixture(scope="module")
def still() -> Scan:
    """The case's CT as if it had been taken in the T1's position."""
    return ct_of({"rotation_degrees": 0.0, "translation_mm": 0.0, "soft_tissue_mm": 0.0})


# --- phantom


def test_layout_is_the_public_one(archive: Path) -> None:
    assert archive.name == "iDB-CERMEP-MRXFDG_MRI_ct.tar.gz"
    with tarfile.open(archive, "r:gz") as tar:
        assert tar.getnames() == [
            f"{MEMBERS}/sub-{n:04d}/sub-{n:04d}_space-pet_{modality}.nii.gz"
            for n in (1, 2, 3)
            for modality in ("T1w", "ct")
        ]
    splits = read_json(archive.parent / "splits.json")
    assert splits == {"train": ["sub-0001"], "validate": ["sub-0002"], "test": ["sub-0003"]}


def test_archive_has_the_same_bytes_for_any_number_of_jobs(archive: Path, tmp_path: Path) -> None:
    with parallel_config(backend="threading"):  # processes would have to start and load everything
        assert make_phantoms(SOURCE, tmp_path, jobs=2)["scans"].read_bytes() == archive.read_bytes()


def test_a_case_depends_on_seed_and_name_only(archive: Path) -> None:
    with tarfile.open(archive, "r:gz") as tar:
        first = {name.split("space-pet_")[1][:-7]: tar.extractfile(name).read() for name in tar.getnames()[:2]}  # type: ignore[union-attr]
    more = {"train": 9, "validate": 1, "test": 1}
    assert make_case(SOURCE.model_copy(update={"cases": more}), CASE) == first
    assert make_case(SOURCE.model_copy(update={"seed": 1}), CASE)["ct"] != first["ct"]


def test_scans_look_like_t1_and_ct(scans: dict[str, Scan]) -> None:
    t1, ct = scans["T1w"], scans["ct"]
    assert t1.values.shape == SOURCE.shape
    assert ct.values.shape != t1.values.shape
    assert resampling.orientation(ct.affine) != resampling.orientation(t1.affine)
    assert ct.values.min() >= AIR
    corner = ct.values[:6, :6, -6:]
    assert abs(np.median(corner) + 1000) < 10  # air
    body = body_mask(ct.values, -350, 3, 0, 1) > 0
    assert 0 < np.median(ct.values[body]) < 100  # soft tissue
    assert 0.05 < (ct.values[body] > 300).mean() < 0.3  # bone
    assert 0.25 < (t1.values > 45).mean() < 0.6


def test_ct_lies_elsewhere(scans: dict[str, Scan], still: Scan) -> None:
    """Without the motions it would show the same skull in the same place."""
    moved, soft = scans["ct"].values, ct_of({"rotation_degrees": 0.0, "translation_mm": 0.0}).values
    height = moved.shape[2]
    top = (slice(None), slice(None), slice(int(0.5 * height), int(0.8 * height)))  # the skull holds all in place
    below = (slice(None), slice(None), slice(int(0.2 * height)))
    soft_tissue = np.abs(soft - still.values)
    assert soft_tissue[below].mean() > 5 * soft_tissue[top].mean()
    assert soft_tissue[below].mean() > 5
    assert np.abs(moved - still.values)[top].mean() > 30


# --- one case


def test_arrays(prepared: tuple[dict[str, np.ndarray], dict], scans: dict[str, Scan]) -> None:
    arrays, facts = prepared
    assert set(arrays) == {
        "input", "label", "label_registered", "label_native", "input_body_mask", "label_body_mask",
        "label_native_body_mask", "evaluation_mask",
    }  # fmt: skip
    for role, values in arrays.items():
        assert values.shape == (scans["ct"].values.shape if "native" in role else SOURCE.shape)
        assert values.dtype == (np.uint8 if role.endswith("_mask") else np.float32)
    assert np.allclose(facts["affine"], scans["T1w"].affine)
    assert np.allclose(facts["native_affine"], scans["ct"].affine)
    assert 0.1 < facts["mean_displacement"] < 5
    assert json.loads(json.dumps(facts)) == facts


def test_masks(prepared: tuple[dict[str, np.ndarray], dict]) -> None:
    arrays, _ = prepared
    body, evaluation = arrays["input_body_mask"] > 0, arrays["evaluation_mask"] > 0
    assert evaluation[body].all()
    assert 1.05 < evaluation.sum() / body.sum() < 1.5
    overlap = 2 * (body & (arrays["label_body_mask"] > 0)).sum() / (body.sum() + arrays["label_body_mask"].sum())
    assert overlap > 0.85
    for role in ("label", "label_native"):
        assert (arrays[role][arrays[f"{role}_body_mask"] == 0] == AIR).all()


def test_intensities(prepared: tuple[dict[str, np.ndarray], dict], scans: dict[str, Scan]) -> None:
    arrays, facts = prepared
    inside = arrays["input_body_mask"] > 0
    assert 0.4 < np.median(arrays["input"][inside]) < 1.1
    assert 0.85 < facts["body_quantiles"][3] < 1.15 or 0.85 < facts["body_quantiles"][4] < 1.2  # white matter
    assert np.array_equal(arrays["label_native"].max(), scans["ct"].values.max())


def test_label_is_the_ct_on_t1s_grid(prepared: tuple[dict[str, np.ndarray], dict], scans: dict[str, Scan]) -> None:
    arrays, _ = prepared
    t1, ct = scans["T1w"], scans["ct"]
    linear = resampling.to_grid(ct.values - AIR, ct.affine, t1.values.shape, t1.affine) + AIR
    inside = arrays["label_body_mask"] > 0
    assert np.corrcoef(arrays["label"][inside], linear[inside])[0, 1] > 0.97


def test_registration_brings_the_ct_closer_to_the_truth(
    prepared: tuple[dict[str, np.ndarray], dict], scans: dict[str, Scan], still: Scan
) -> None:
    arrays, _ = prepared
    t1, inside = scans["T1w"], arrays["input_body_mask"] > 0
    truth = resampling.to_grid(still.values - AIR, still.affine, t1.values.shape, t1.affine, order=3) + AIR
    before, after = (np.abs(arrays[role] - truth)[inside].mean() for role in ("label", "label_registered"))
    assert after < 0.9 * before


def test_another_voxel_size_and_invalid_regions(archive: Path, tmp_path: Path) -> None:
    """T1 is resampled around its centre; everything else comes onto that grid."""
    with CermepArchives({"scans": archive}) as opened:
        t1 = opened.read(CASE)["T1w"]
    region = np.zeros(SOURCE.shape, np.uint8)
    region[10:20, 20:30, 8:16] = 1
    for name in (f"{CASE}_space-pet_mr_invalid_region_mask", "sub-0002_space-pet_ct_invalid_region_mask"):
        nibabel.save(nibabel.Nifti1Image(region, t1.affine), tmp_path / f"{name}.nii.gz")
    with CermepArchives(locate(CermepPathSource(kind="path", path=archive, invalid_regions=tmp_path))) as opened:
        assert set(opened.read("sub-0003")) == {"T1w", "ct"}
        scans = opened.read(CASE)
    assert set(scans) == {"T1w", "ct", "mr_invalid_region_mask"}

    coarse = (7.0, 7.0, 7.7)
    quick = QUICK.model_copy(update={"registration": BSplineStep(iterations=1, samples=200, step_size_samples=200)})
    arrays, facts = prepare_case(scans, CASE, quick, coarse)
    shape, affine = resampling.resampled_shape(SOURCE.shape, SIZE, coarse), np.array(facts["affine"])
    assert arrays["input"].shape == arrays["label"].shape == arrays["label_registered"].shape == shape
    assert np.allclose(resampling.voxel_size(affine), coarse)
    assert np.allclose(*(a @ [*((np.array(s) - 1) / 2), 1] for a, s in ((t1.affine, SOURCE.shape), (affine, shape))))
    overlap = arrays["input_body_mask"] & arrays["label_body_mask"]
    assert 2 * overlap.sum() / (arrays["input_body_mask"].sum() + arrays["label_body_mask"].sum()) > 0.8
    centres = [
        a @ [*np.argwhere(mask > 0).mean(axis=0), 1]
        for a, mask in ((t1.affine, region), (affine, arrays["input_invalid_region_mask"]))
    ]
    assert np.abs(centres[0] - centres[1]).max() <= 3.5  # half a voxel
    assert "label_invalid_region_mask" not in arrays


@pytest.mark.parametrize(
    "name, change, reason",
    [
        ("T1w", lambda v: np.zeros_like(v), "no brain"),
        ("ct", lambda v: np.full_like(v, AIR), "CT shows no body"),
    ],
    ids=["empty T1", "empty CT"],
)
def test_empty_scans_are_skipped(scans: dict[str, Scan], name: str, change: object, reason: str) -> None:
    bad = {**scans, name: Scan(change(scans[name].values), scans[name].affine)}  # type: ignore[operator]
    with pytest.raises(CaseSkipped, match=reason):
        prepare_case(bad, CASE, QUICK, SIZE)


def test_ct_of_another_place_is_skipped(scans: dict[str, Scan]) -> None:
    far = scans["ct"].affine.copy()
    far[0, 3] += 1e4
    with pytest.raises(CaseSkipped, match="CT shows no body on T1's grid"):
        prepare_case({**scans, "ct": Scan(scans["ct"].values, far)}, CASE, QUICK, SIZE)


def test_a_raw_scan_is_prepared_like_the_inputs(
    prepared: tuple[dict[str, np.ndarray], dict], scans: dict[str, Scan]
) -> None:
    arrays, facts = prepared
    known = constants(QUICK, SIZE, [facts])
    assert json.loads(json.dumps(known)) == known
    result = prepare_input(scans["T1w"], known)
    assert np.array_equal(result.values, arrays["input"])
    assert np.array_equal(result.body, arrays["input_body_mask"])


# --- archives


def scan_bytes(shape: tuple[int, ...] = (4, 4, 4), value: float = 1) -> bytes:
    values = np.full(shape, value, np.float32)
    values[0] += 1
    return gzip.compress(nibabel.Nifti1Image(values, np.eye(4)).to_bytes(), mtime=0)


def packed(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(f"{MEMBERS}/{name.split('_')[0]}/{name}.nii.gz")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_incomplete_and_damaged_cases(tmp_path: Path) -> None:
    good = scan_bytes()
    path = packed(
        tmp_path / ARCHIVE,
        **{
            "sub-0001_space-pet_T1w": good, "sub-0001_space-pet_ct": good, "sub-0002_space-pet_T1w": good,
            "sub-0003_space-pet_T1w": good, "sub-0003_space-pet_ct": good[:-12],
            "sub-0004_space-pet_T1w": scan_bytes(value=np.nan), "sub-0004_space-pet_ct": good,
        },
    )  # fmt: skip
    with CermepArchives(locate(CermepPathSource(kind="path", path=tmp_path))) as opened:
        assert opened.cases() == ["sub-0001", "sub-0003", "sub-0004"]
        assert opened.incomplete_cases() == ["sub-0002"]
        assert opened.full_name("0003") == "sub-0003"
        assert set(opened.read("sub-0001")) == {"T1w", "ct"}
        for case, reason in (
            ("sub-0002", "no ct scan"),
            ("sub-0003", "sub-0003_space-pet_ct.nii.gz: (is truncated|cannot be read)"),
            ("sub-0004", "sub-0004_space-pet_T1w.nii.gz: holds values that are not finite"),
        ):
            with pytest.raises(CaseSkipped, match=reason):
                opened.read(case)
    assert path.is_file()


def test_wrong_archives_are_named(tmp_path: Path) -> None:
    wrong = packed(tmp_path / "other.tar.gz", readme=b"nothing")
    with pytest.raises(UserError, match=r"other\.tar\.gz: holds no scan named sub-"), CermepArchives({"scans": wrong}):
        pass
    with pytest.raises(UserError, match=r"sources\.cermep\.path: .*absent not found"):
        locate(CermepPathSource(kind="path", path=tmp_path / "absent"))
    with pytest.raises(UserError, match=r"sources\.cermep\.invalid_regions: .*absent not found"):
        locate(CermepPathSource(kind="path", path=wrong, invalid_regions=tmp_path / "absent"))
    (tmp_path / "truncated.tar.gz").write_bytes(packed(tmp_path / ARCHIVE, readme=bytes(5000)).read_bytes()[:-60])
    with (
        pytest.raises(UserError, match=r"truncated\.tar\.gz: damaged"),
        CermepArchives({"scans": tmp_path / "truncated.tar.gz"}),
    ):
        pass


def test_a_case_with_the_same_scan_twice_is_skipped(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "sub-0001_space-pet_ct.nii.gz").write_bytes(scan_bytes())
    with CermepArchives({"scans": tmp_path}) as opened:
        assert opened.cases() == []
        assert opened.incomplete_cases() == ["sub-0001"]
        with pytest.raises(CaseSkipped, match=r"holds it 2 times \(a/sub-0001.*, b/sub-0001.*\); keep one"):
            opened.read("sub-0001")


def test_published_splits() -> None:
    splits = published_splits([f"sub-{n:04d}" for n in range(1, 38)])
    assert {split: len(cases) for split, cases in splits.items()} == {"train": 20, "validate": 5, "test": 12}
    assert sorted(sum(splits.values(), [])) == [f"sub-{n:04d}" for n in range(1, 38)]
    assert "sub-0035" in splits["test"]
