"""Which images of a cohort are taken, and what their outputs are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from dicom_series import oblique, write_series
from equisynth.cohort import Wanted, check_one_image, find_cases, is_bids, is_one_image
from equisynth.errors import UserError
from test_bids import touch

VOLUMES = Wanted("T2", "PD", 3)
PICTURES = Wanted("unstained", "H&E", 2)


def outputs(inputs: list[Path], top: Path, wanted: Wanted = VOLUMES) -> list[str]:
    return [case.output.relative_to(top / "out").as_posix() for case in find_cases(inputs, top / "out", wanted)]


def test_a_folder_keeps_its_tree(tmp_path: Path) -> None:
    touch(
        tmp_path / "in", "b.nii.gz", "site/x/a.nii", "site/notes.txt", ".hidden/c.nii", ".d.nii", "e.png", "f.ome.tiff"
    )
    assert outputs([tmp_path / "in"], tmp_path) == ["b_synthesised-PD.nii.gz", "site/x/a_synthesised-PD.nii"]
    found = outputs([tmp_path / "in"], tmp_path, PICTURES)
    assert {"e_synthesised-HE.png", "f_synthesised-HE.ome.tiff"} < set(found)


@pytest.mark.parametrize("pattern", ["*_T2.nii*", "site/*_T2.nii"])
def test_a_pattern_chooses_by_name_or_path(tmp_path: Path, pattern: str) -> None:
    touch(tmp_path / "in", "site/a_T2.nii", "site/a_mask.nii")
    assert outputs([tmp_path / "in"], tmp_path, Wanted("T2", "PD", 3, pattern)) == ["site/a_T2_synthesised-PD.nii"]


def test_several_files_and_folders(tmp_path: Path) -> None:
    touch(tmp_path, "one/a.nii", "two/a.nii", "b.nii")
    found = outputs([tmp_path / "one", tmp_path / "two", tmp_path / "b.nii"], tmp_path)
    assert found == ["one/a_synthesised-PD.nii", "two/a_synthesised-PD.nii", "b_synthesised-PD.nii"]


def test_a_bids_tree_becomes_a_bids_tree(tmp_path: Path) -> None:
    tree = tmp_path / "in"
    touch(
        tree, "sub-01/anat/sub-01_T2w.nii.gz", "sub-02/ses-a/anat/sub-02_ses-a_T2w.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz",
    )  # fmt: skip
    assert is_bids([tree])
    assert outputs([tree], tmp_path) == [
        "sub-01/anat/sub-01_desc-synthesised_PDw.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_desc-synthesised_PDw.nii.gz",
    ]
    first, second = find_cases([tree], tmp_path / "out", Wanted("T2", "PD", 3, t1="T1w"))
    assert "needs one T1w" in (first.problem or "")
    assert second.t1 == tree / "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz"
    assert outputs([tree], tmp_path, Wanted("T2", "PD", 3, "*ses-a_T1w*")) == [
        "sub-02/ses-a/anat/sub-02_ses-a_desc-synthesised_PDw.nii.gz"
    ]


def test_dicom_folders_are_named_after_the_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "in/anna/t2", oblique())
    write_series(tmp_path / "in/berta", oblique(), 4)
    write_series(tmp_path / "in/berta", oblique((1.0, 1.0, 2.0)), 7)
    assert outputs([tmp_path / "in"], tmp_path) == [
        "anna/t2_synthesised-PD.nii.gz",
        "berta_0004-t2-tse_synthesised-PD.nii.gz",
        "berta_0007-t2-tse_synthesised-PD.nii.gz",
    ]
    chosen = Wanted("T2", "PD", 3, "berta/0007*")
    assert outputs([tmp_path / "in"], tmp_path, chosen) == ["berta_0007-t2-tse_synthesised-PD.nii.gz"]
    assert outputs([tmp_path / "in/anna/t2"], tmp_path) == ["t2_synthesised-PD.nii.gz"]


def test_one_image_or_a_cohort(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "b.nii")
    (tmp_path / "there.x").mkdir()
    (tmp_path / "series").mkdir()
    one, other, series = (tmp_path / name for name in ("a.nii", "b.nii", "series"))
    assert is_one_image([one], tmp_path / "out.nii.gz")
    assert is_one_image([one], tmp_path / "out.mgz")  # is told that this is no output's name
    assert is_one_image([series], tmp_path / "out.nii.gz")
    assert not is_one_image([one], tmp_path / "out")
    assert not is_one_image([one], tmp_path / "there.x")
    assert not is_one_image([series], tmp_path / "v1.2")
    assert not is_one_image([one, other], tmp_path / "out.nii.gz")


@pytest.mark.parametrize(
    ("pattern", "jobs", "scheduler", "told"),
    [
        ("*_T2*", 1, None, r"--pattern \*_T2\*"),
        (None, 4, None, "--jobs 4"),
        (None, 1, "tcp://a:1", "--scheduler tcp://a:1"),
    ],
)
def test_options_of_cohorts_are_not_ignored_for_one_image(
    pattern: str | None, jobs: int, scheduler: str | None, told: str
) -> None:
    with pytest.raises(
        UserError, match=rf"{told}: is for several images, found one \(a.nii\) and one file .*\(b.nii\)"
    ):
        check_one_image(Path("a.nii"), Path("b.nii"), pattern, jobs, scheduler)
    check_one_image(Path("a.nii"), Path("b.nii"), None, 1, None)


def test_a_pattern_may_stand_beside_files_where_there_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "in/b_T2.nii", "in/b_PD.nii")
    found = outputs([tmp_path / "a.nii", tmp_path / "in"], tmp_path, Wanted("T2", "PD", 3, "*_T2*"))
    assert found == ["a_synthesised-PD.nii", "b_T2_synthesised-PD.nii"]


def test_outputs_may_lie_in_derivatives_of_a_bids_tree_only(tmp_path: Path) -> None:
    touch(tmp_path, "bids/sub-01/anat/sub-01_T2w.nii", "plain/a.nii")
    tree, plain = tmp_path / "bids", tmp_path / "plain"
    assert len(find_cases([tree], tree / "derivatives/equisynth", VOLUMES)) == 1
    for folder, output in ((tree, tree), (tree, tree / "out"), (plain, plain / "derivatives/x"), (plain, plain)):
        with pytest.raises(UserError, match="lies in the input"):
            find_cases([folder], output, VOLUMES)
    (tmp_path / "link").symlink_to(plain)
    with pytest.raises(UserError, match="lies in the input"):
        find_cases([plain], tmp_path / "link/out", VOLUMES)


def test_what_cannot_be_a_cohort_is_one_line(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.nii", "in/a.nii.gz", "other/a.nii", "bids/sub-01/anat/sub-01_T1w.nii", "notes/a.txt")
    (tmp_path / "empty").mkdir()
    for inputs, wanted, message in (
        (["in"], VOLUMES, r"a.nii and .*a.nii.gz would both become|a.nii.gz and .*a.nii would both become"),
        (["in/a.nii", "other/a.nii"], VOLUMES, "would both become"),
        (["empty"], VOLUMES, "holds no image; expected .nii.gz"),
        (["notes"], PICTURES, "holds no image; expected .*.png"),
        (["other"], Wanted("T2", "PD", 3, "*_T2*"), r"no image that matches --pattern \*_T2\*"),
        (["bids"], VOLUMES, r"no image named sub-\*_T2w.nii.gz"),
        (["other"], Wanted("T2", "PD", 3, t1="T1w"), "is no BIDS tree"),
        (["in/a.nii", "notes/a.txt"], VOLUMES, "a.txt: the input's name must end with"),
        (["in/a.nii", "absent"], VOLUMES, "absent: no such file or folder"),
        (
            ["in/a.nii"],
            Wanted("T2", "PD", 3, "*_T2*"),
            r"--pattern \*_T2\*: chooses from folders, found the file .*a.nii",
        ),
        (["in/a.nii", "bids/sub-01/anat/sub-01_T1w.nii"], Wanted("T2", "PD", 3, "*_T2*"), "folders, found 2 files"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            find_cases([tmp_path / name for name in inputs], tmp_path / "out", wanted)
        assert "\n" not in str(caught.value)
