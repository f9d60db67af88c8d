"""Names in BIDS trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from equisynth import bids
from equisynth.errors import UserError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    ("name", "modality", "output"),
    [
        ("sub-01_T2w.nii.gz", "PD", "sub-01_desc-synthesised_PDw.nii.gz"),
        ("sub-01_ses-a_acq-x_run-2_T2w.nii", "T1", "sub-01_ses-a_acq-x_run-2_desc-synthesised_T1w.nii"),
        ("sub-01_desc-raw_T1w.nii.gz", "CT", "sub-01_desc-synthesised_CT.nii.gz"),
        ("sub-01_T1w.nii.gz", "H&E", "sub-01_desc-synthesised_HE.nii.gz"),
    ],
)
def test_the_output_keeps_the_entities(name: str, modality: str, output: str) -> None:
    parsed = bids.parsed(name)
    assert parsed is not None
    assert bids.synthesised(parsed, modality) == output
    assert bids.parsed(output) is not None


@pytest.mark.parametrize("name", ["T2.nii.gz", "sub-01.nii.gz", "sub-01_T2w.json", "sub-01_T2w.tif", "sub_T2w.nii"])
def test_other_names_are_none_of_bids(name: str) -> None:
    assert bids.parsed(name) is None


def test_images_are_those_of_the_subjects(tmp_path: Path) -> None:
    touch(tmp_path, "sub-02/ses-b/anat/sub-02_ses-b_T2w.nii.gz", "sourcedata/sub-01/sub-01_T2w.nii")
    touch(tmp_path, *(f"sub-01/anat/sub-01_{name}" for name in ("T1w.nii", "T2w.nii", "T2w.json")))
    touch(tmp_path, "derivatives/x/sub-01/anat/sub-01_T2w.nii")
    assert bids.is_tree(tmp_path)
    assert [path.name for path in bids.images(tmp_path, "T2w")] == ["sub-01_T2w.nii", "sub-02_ses-b_T2w.nii.gz"]
    assert not bids.is_tree(tmp_path / "sub-01")


def test_a_companion_is_of_the_same_session(tmp_path: Path) -> None:
    touch(
        tmp_path, "sub-1/ses-a/anat/sub-1_ses-a_T2w.nii.gz", "sub-1/ses-a/anat/sub-1_ses-a_T1w.nii.gz",
        "sub-1/ses-b/anat/sub-1_ses-b_T2w.nii.gz", "sub-1/ses-c/anat/sub-1_ses-c_run-2_T2w.nii",
        "sub-1/ses-c/anat/sub-1_ses-c_run-1_T1w.nii", "sub-1/ses-c/anat/sub-1_ses-c_run-2_T1w.nii",
        "sub-1/ses-c/anat/sub-1_ses-c_run-3_T2w.nii",
    )  # fmt: skip

    def companion(session: str, run: str = "", suffix: str = ".nii") -> str:
        image = tmp_path / f"sub-1/ses-{session}/anat/sub-1_ses-{session}_{run}T2w{suffix}"
        return bids.companion(tmp_path, image, "T1w").name

    assert companion("a", suffix=".nii.gz") == "sub-1_ses-a_T1w.nii.gz"
    assert companion("c", "run-2_") == "sub-1_ses-c_run-2_T1w.nii"
    with pytest.raises(UserError, match="ses-b_T2w.nii.gz: needs one T1w of the same subject and session, found none"):
        companion("b", suffix=".nii.gz")
    with pytest.raises(UserError, match="found sub-1_ses-c_run-1_T1w.nii, sub-1_ses-c_run-2_T1w.nii"):
        companion("c", "run-3_")
