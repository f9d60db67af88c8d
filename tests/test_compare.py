"""Comparisons of evaluated experiments: rows, intervals, directions, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import overview_example
from equisynth import cli
from equisynth.compare import (
    Measure,
    base_name,
    case_values,
    compare,
    inapplicable,
    number,
    pooled_values,
    reasons,
    run,
    signed,
)
from equisynth.errors import UserError
from equisynth.params import read

A, B = "ixi-eqsim_com_eqadv", "ixi-noreg"


def details(label: str = "label_aligned", **sections: Any) -> dict[str, Any]:
    values = {"mae": 1.0, "psnr": None, "locations": 20, "mse": float("nan")}
    test = {"split": "test", "label": label, "cases": {"a": values}, "pooled": values}
    return {"test": test} | sections


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports of a few experiments; tests leave them as they are."""
    folder = tmp_path_factory.mktemp("repository")
    overview_example.make_reports(folder)
    return folder


@pytest.fixture
def repository(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as working directory."""
    monkeypatch.chdir(folder)
    return folder


# --- names


@pytest.mark.parametrize(
    ("name", "family", "title", "unit", "direction"),
    [
        ("mae", "", "MAE", "HU", "lower"),
        ("local_me", "local_", "ME", "HU", "zero"),
        ("full_valid_psnr", "full_valid_", "PSNR", "dB", "higher"),
        ("registered_mse", "registered_", "MSE", "(HU)²", "lower"),
        ("deformation_distance_without_intra_voxels", "deformation_", "distance without intra", "voxels", "lower"),
        ("deformation_distance_unregistered_voxels", "deformation_", "distance unregistered", "voxels", ""),
        ("deformation_mean_displacement_mm", "deformation_", "mean displacement", "mm", ""),
        ("deformation_drift_axis0_voxels", "deformation_", "drift axis0", "voxels", "zero"),
        ("deformation_folded_share", "deformation_", "folded share", "", "lower"),
        ("fid/axis0", "fid/", "axis0", "", "lower"),
        ("nmi", "", "NMI", "", "higher"),
    ],
)
def test_a_measure_s_name_says_all_of_it(name: str, family: str, title: str, unit: str, direction: str) -> None:
    measure = Measure(name)
    assert (measure.family, measure.title, measure.unit("HU"), measure.direction) == (family, title, unit, direction)


@pytest.mark.parametrize("value", [0.2, -0.2])
def test_badness_is_lower_for_what_is_better(value: float) -> None:
    assert Measure("me").badness(value) == 0.2
    assert Measure("ssim").badness(value) == -value
    assert Measure("deformation_mean_displacement_mm").badness(value) is None


@pytest.mark.parametrize(
    "name",
    [A, f"{A}.epoch12", f"{A}.train", f"{A}.epoch3.validate", f"{A}.seed3.weight_std_mm12.5", f"{A}.epoch3.test.seed1"],
)
def test_variants_made_by_hand_belong_to_their_experiment(name: str) -> None:
    assert base_name(name) == A


def test_another_ending_is_part_of_a_name() -> None:
    assert base_name("ixi-a.v2") == "ixi-a.v2"


# --- tables


def test_cases_hold_finite_measures_without_counts() -> None:
    assert case_values(details(), "test") == {"mae": {"a": 1.0}}
    assert case_values(details("label_registered"), "test") == {"registered_mae": {"a": 1.0}}
    assert case_values(details(), "validate") == {}


def test_all_sections_are_read_in_the_order_of_papers() -> None:
    part = {"test": {"split": "test", "cases": {"a": {"mae": 2.0, "me": -1.0}}, "pooled": {"mae": 2.0}}}
    deformation = {"test": {"cases": {"a": {"folded_share": 0.1}}, "pooled": {"folded_share": 0.1}}}
    left_out = {"test": {"computed": False, "reason": "left out"}}
    found = details(full_valid=left_out, deformation=deformation, registered=part)
    assert list(case_values(found, "test")) == ["mae", "local_mae", "local_me", "deformation_folded_share"]
    assert reasons(found, "test") == {}


def test_fid_counts_for_its_split_alone() -> None:
    fid = {"computed": True, "split": "test", "images": {"value": 12.5, "images": 4}, "weights_sha256": "0"}
    assert pooled_values(details(fid=fid), "test") == {"mae": 1.0, "fid/images": 12.5}
    assert "fid/images" not in pooled_values(details(fid=fid), "validate")


def test_distances_come_before_what_they_are_judged_by() -> None:
    names = ["deformation_distance_unregistered_voxels", "deformation_distance_voxels"]
    assert sorted(map(Measure, names), key=lambda measure: measure.order)[0].title == "distance"


def test_reasons_are_kept() -> None:
    registered = {"test": {"split": "test", "computed": False, "reason": "no native label"}}
    assert reasons(details(registered=registered), "test") == {"local_": "no native label"}


@pytest.mark.parametrize(("stated", "expected"), [({"applies": False}, ("local_",)), ({"applies": True}, ()), ({}, ())])
def test_what_does_not_apply_says_so(stated: dict[str, bool], expected: tuple[str, ...]) -> None:
    registered = {"test": {"split": "test", "computed": False, "reason": "no native label"} | stated}
    assert inapplicable(details(registered=registered), "test") == expected


# --- rows


@pytest.mark.parametrize(("measure", "better"), [("mae", "a"), ("ssim", "b"), ("me", None), ("else", None)])
def test_the_better_one_follows_from_interval_and_direction(measure: str, better: str | None) -> None:
    a = {measure: {str(n): float(n) for n in range(8)}}
    b = {measure: {str(n): n + 1 + n / 100 for n in range(8)}}
    (row,) = compare(a, b)
    assert row.better == better
    assert row.difference.mean == pytest.approx(row.b - row.a)
    (turned,) = compare(b, a)
    assert turned.better == {"a": "b", "b": "a", None: None}[better]


def test_means_are_over_shared_cases_only() -> None:
    (row,) = compare({"mae": {"x": 1.0, "y": 2.0}}, {"mae": {"y": 5.0, "z": 9.0}})
    assert (row.a, row.b, row.difference.cases, row.difference.interval) == (2.0, 5.0, 1, None)
    assert row.better is None


def test_nothing_shared_and_unknown_measures_are_refused() -> None:
    with pytest.raises(UserError, match="no case was measured for both"):
        compare({"mae": {"x": 1.0}}, {"mae": {"y": 1.0}})
    with pytest.raises(UserError, match="found 'ssim', expected one that both have: mae"):
        compare({"mae": {"x": 1.0}}, {"mae": {"x": 1.0}}, ["ssim"])


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.000"), (1138.18, "1138"), (0.2141, "0.2141"), (12345.0, "12345"), (2e-5, "2e-05")]
)
def test_numbers_have_four_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_differences_have_a_sign() -> None:
    assert [signed(value) for value in (0.04282, -2.5, 0.0)] == ["+0.0428", "-2.50", "+0.00"]


# --- the command


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int | None, str, str]:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["compare", *arguments])
    found = capsys.readouterr()
    return stopped.value.code, found.out, found.err


@pytest.mark.usefixtures("repository")
def test_tables_fit_eighty_columns(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = command(capsys, A, B, "ixi-pix2pix")
    assert not code
    assert out.count(f"A: {A}") == 2
    assert "mae ↓" in out
    assert max(map(len, out.splitlines())) <= 80
    assert "…" not in out


@pytest.mark.usefixtures("repository")
def test_few_cases_have_no_interval_and_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = command(capsys, "coco-lr_eqsim_com", "coco-lr_noreg_aug")
    assert "No interval below 6 cases (found 3)" in out


@pytest.mark.usefixtures("repository")
def test_json_holds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(capsys, A, B, "--measure", "mae", "--json")
    (found,) = json.loads(out)
    (row,) = found["rows"]
    assert not code
    assert (found["a"], found["b"], found["split"]) == (A, B, "test")
    assert (row["measure"], row["better"], row["cases"], row["better_when"]) == ("mae", "a", 8, "lower")
    assert row["interval"][0] < row["difference"] < row["interval"][1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((A,), "expected two or more"),
        ((A, "nothing"), "nothing"),
        ((A, "coco-lr_eqsim_com"), "different datasets"),
        ((A, "ixi-defsim_com_eqadv"), "add it to `pipeline` in params.yaml"),
        (("cermep-eqsim_com_eqadv",) * 2, "run: dvc repro evaluate@cermep-eqsim_com_eqadv"),
        ((A, B, "--measure", "maee"), "found 'maee', expected one that both have: mae"),
        ((A, B, "--split", "train"), "no case of train was measured"),
    ],
)
@pytest.mark.usefixtures("repository")
def test_mistakes_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    code, _, err = command(capsys, *arguments)
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


def test_other_cases_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "reports/evaluation", tmp_path / "evaluation")
    path = tmp_path / "evaluation" / f"{B}.json"
    content = json.loads(path.read_text())
    content["test"]["cases"] = {f"other-{case}": values for case, values in content["test"]["cases"].items()}
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="same prepared dataset"):
        run([A, B], "test", ["mae"], read(folder / "params.yaml"), tmp_path)
