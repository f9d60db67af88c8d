"""Phantoms: in the public archive's layout, fixed by the seed, plausible, and no mere lookup table from T2 to PD."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from pydantic import ValidationError
from scipy import ndimage

from equisynth.datasets.head import TISSUES, Subject, head_atlas
from equisynth.datasets.phantom import MODALITIES, PhantomSource, case_names, make_case, write_archives
from equisynth.datasets.randomness import named_random_state
from equisynth.files import read_json

SMALL = PhantomSource(
    cases={"train": 2, "validate": 1, "test": 1}, voxel_size=(6.0, 6.0, 6.4), shape=(32, 36, 27), incomplete_cases=1
)
DEMO = PhantomSource()


def scan(content: bytes) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(content))


@pytest.fixture(scope="module")
def demo_cases() -> list[dict[str, nibabel.Nifti1Image]]:
    return [{m: scan(c) for m, c in make_case(DEMO, case).items()} for case in ("IXI002-Guys-0700", "IXI003-HH-0707")]


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    write_archives(SMALL, folder)
    return folder


def test_layout_is_the_public_one(archives: Path) -> None:
    splits = read_json(archives / "splits.json")
    assert {split: len(cases) for split, cases in splits.items()} == {"train": 3, "validate": 1, "test": 1}
    everyone = sorted(case for cases in splits.values() for case in cases)
    lacking = splits["train"][-1]
    for modality in MODALITIES:
        with tarfile.open(archives / f"IXI-{modality}.tar") as tar:
            expected = [f"{case}-{modality}.nii.gz" for case in everyone if (case, modality) != (lacking, "PD")]
            assert tar.getnames() == expected
            assert all(member.isreg() for member in tar)
    for case in everyone:
        identifier, site, number = case.split("-")
        assert identifier.startswith("IXI")
        assert identifier[3:].isdigit()
        assert site in ("Guys", "HH", "IOP")
        assert len(number) == 4


def test_same_bytes_for_any_number_of_jobs(archives: Path, tmp_path: Path) -> None:
    write_archives(SMALL, tmp_path, jobs=2)
    for name in ("IXI-T1.tar", "IXI-T2.tar", "IXI-PD.tar", "splits.json"):
        assert (tmp_path / name).read_bytes() == (archives / name).read_bytes()


def test_a_case_depends_on_seed_and_name_only() -> None:
    case = case_names(SMALL)["test"][0]
    content = make_case(SMALL, case)
    more = SMALL.model_copy(update={"cases": {"train": 5, "validate": 1, "test": 1}})
    assert make_case(more, case) == content
    assert make_case(SMALL.model_copy(update={"seed": 1}), case)["T2"] != content["T2"]
    assert make_case(SMALL, case_names(SMALL)["train"][0])["T2"] != content["T2"]


def test_grids(demo_cases: list[dict[str, nibabel.Nifti1Image]]) -> None:
    for images in demo_cases:
        t1, t2, pd = (images[modality] for modality in MODALITIES)
        assert t2.shape == pd.shape == DEMO.shape
        assert np.array_equal(t2.affine, pd.affine)
        assert np.allclose(t2.header.get_zooms(), DEMO.voxel_size)
        assert t1.shape != t2.shape
        assert nibabel.aff2axcodes(t1.affine) != nibabel.aff2axcodes(t2.affine)
        assert {image.get_data_dtype() for image in images.values()} == {np.dtype(np.int16)}


def test_subjects_differ_smoothly(demo_cases: list[dict[str, nibabel.Nifti1Image]]) -> None:
    first, second = (images["T2"].get_fdata() for images in demo_cases)
    body = [ndimage.binary_fill_holes(values > 0.2 * np.percentile(values, 99)) for values in (first, second)]
    overlap = 2 * (body[0] & body[1]).sum() / (body[0].sum() + body[1].sum())
    assert 0.8 < overlap < 0.995  # both heads, not the same head


def test_anatomical_change_never_folds() -> None:
    atlas = head_atlas(DEMO.voxel_size)
    for case in case_names(DEMO)["train"]:
        subject = Subject.draw(atlas, named_random_state(DEMO.seed, "phantom", case))
        steps = [np.gradient(component, 8.0) for component in subject.change]
        jacobian = np.moveaxis(np.array(steps), (0, 1), (-2, -1)) + np.eye(3)
        assert np.linalg.det(jacobian).min() > 0.2  # 0 is a fold
        assert 1 < np.abs(subject.change).mean() < 5


def test_tissues_are_fractions_in_plausible_amounts() -> None:
    fractions = head_atlas(DEMO.voxel_size).fractions
    assert fractions.min() > -1e-4
    assert fractions.sum(0).max() < 1.01
    litres = {
        t: f.sum() * head_atlas(DEMO.voxel_size).spacing ** 3 / 1e6 for t, f in zip(TISSUES, fractions, strict=True)
    }
    assert 0.35 < litres["white"] < 0.75
    assert 0.6 < litres["grey"] + litres["deep_grey"] < 1.1
    assert 0.1 < litres["csf"] < 0.6
    assert litres["lesion"] == 0  # of subjects, not of the average


def test_context_predicts_pd_and_a_lookup_table_does_not(demo_cases: list[dict[str, nibabel.Nifti1Image]]) -> None:
    """Errors on another subject: a table of T2 alone against one of T2 and its surroundings."""

    def samples(images: dict[str, nibabel.Nifti1Image]) -> tuple[np.ndarray, np.ndarray]:
        t2, pd = (images[m].get_fdata(dtype=np.float32) for m in ("T2", "PD"))
        body = ndimage.binary_fill_holes(ndimage.binary_opening(pd > 0.2 * np.percentile(pd, 95)))
        t2, pd = t2 / np.median(t2[body]), pd / np.median(pd[body])
        depth = ndimage.distance_transform_edt(body)
        features = [t2, ndimage.gaussian_filter(t2, 1.5), np.minimum(depth, 12)]
        return np.stack([f[body] for f in features]), pd[body]

    (train, train_pd), (test, test_pd) = (samples(images) for images in demo_cases)

    def table_error(bins: list[int]) -> float:
        edges = [np.quantile(f, np.linspace(0, 1, b + 1)[1:-1]) for f, b in zip(train, bins, strict=False)]

        def cells(features: np.ndarray) -> np.ndarray:
            index = [np.searchsorted(e, f) for e, f in zip(edges, features, strict=False)]
            return np.ravel_multi_index(index, bins)

        count = np.bincount(cells(train), minlength=int(np.prod(bins)))
        mean = np.bincount(cells(train), train_pd, minlength=int(np.prod(bins))) / np.maximum(count, 1)
        filled = np.where(count > 0, mean, train_pd.mean())
        return float(np.abs(filled[cells(test)] - test_pd).mean())

    lookup, context = table_error([64]), table_error([16, 12, 8])
    constant = float(np.abs(test_pd - np.median(train_pd)).mean())
    assert context < 0.8 * lookup < constant


@pytest.mark.parametrize(
    "wrong", [{"cases": {"train": 1}}, {"voxel_size": [0, 1, 1]}, {"shape": [4, 64, 64]}, {"seed": -1}, {"size": 3}]
)
def test_wrong_parameters(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        PhantomSource.model_validate(wrong)
