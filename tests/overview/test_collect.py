"""What the page is made from: experiments in every state, ranks, differences, images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import overview_example
from equisynth.compare import Measure
from equisynth.overview.collect import collect
from equisynth.overview.content import Dataset, Experiment, Overview, difference, letter
from equisynth.overview.image_files import ImageFiles
from equisynth.params import read


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    overview_example.make_reports(folder)
    return folder


@pytest.fixture(scope="module")
def found(repository: Path) -> Overview:
    return collect(read(repository / "params.yaml"), repository / "reports")


def dataset(found: Overview, name: str) -> Dataset:
    return next(other for other in found.datasets if other.name == name)


def test_datasets_follow_the_pipeline(found: Overview) -> None:
    assert [other.name for other in found.datasets] == ["ixi", "coco", "staining", "cermep"]


def test_the_best_experiment_stands_first(found: Overview) -> None:
    ixi = dataset(found, "ixi")
    assert [other.name for other in ixi.experiments][:3] == ["ixi-eqsim_com_eqadv", "ixi-pix2pix", "ixi-noreg"]
    assert ixi.letters["ixi-pix2pix"] == "B"
    best = ixi.best(Measure("ssim"), "test")
    assert best is not None
    assert best.name == "ixi-eqsim_com_eqadv"
    assert ixi.best(Measure("deformation_mean_displacement_mm"), "test") is None


def test_every_state_is_said_in_words(found: Overview) -> None:
    problems = {other.name: other.problems for part in found.datasets for other in part.experiments}
    assert problems["staining-eqsim_com_eqadv"] == ("not run",)
    assert "no evaluation/cermep-eqsim_com_eqadv.json" in problems["cermep-eqsim_com_eqadv"]
    assert "no registry/ixi-pix2pix.json" in problems["ixi-pix2pix"]
    assert any("is not valid JSON" in problem for problem in problems[overview_example.STRANGE])
    assert problems["ixi-noreg"] == ()


@pytest.mark.parametrize("content", ["[1, 2]", '{"test": {"cases": 3}}', '{"test": {"cases": {"a": null}}}', '"words"'])
def test_a_damaged_evaluation_is_a_problem_and_no_crash(repository: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "reports/evaluation/ixi-noreg.json"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    shutil.copytree(repository / "reports/history", tmp_path / "reports/history")
    ixi = dataset(collect(read(repository / "params.yaml"), tmp_path / "reports"), "ixi")
    noreg = next(other for other in ixi.experiments if other.name == "ixi-noreg")
    assert not noreg.is_evaluated
    assert noreg.problems


def test_what_cannot_apply_is_read(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "reports/evaluation/ixi-noreg.json"
    tiles = {"test": {"split": "test", "computed": False, "applies": False, "reason": "case0 is no colour picture"}}
    content = overview_example.evaluation(0.2, 3) | {"full_valid": tiles}
    overview_example.write(path, content)
    ixi = dataset(collect(read(repository / "params.yaml"), tmp_path / "reports"), "ixi")
    noreg = next(other for other in ixi.experiments if other.name == "ixi-noreg")
    assert noreg.missing == {"full_valid_": "case0 is no colour picture"}
    assert noreg.inapplicable == ("full_valid_",)


def test_evaluations_by_hand_stay_out(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / "reports/evaluation", tmp_path / "evaluation")
    for ending in (".epoch12", ".train", ".seed3"):
        shutil.copy(tmp_path / "evaluation/ixi-noreg.json", tmp_path / f"evaluation/ixi-noreg{ending}.json")
    ixi = dataset(collect(read(repository / "params.yaml"), tmp_path), "ixi")
    assert len(ixi.evaluated) == 4


def test_an_experiment_outside_the_pipeline_is_shown(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    shutil.copy(repository / "reports/evaluation/ixi-noreg.json", tmp_path / "evaluation/elsewhere.json")
    names = [other.name for other in collect(read(repository / "params.yaml"), tmp_path).datasets]
    assert names[-1] == "unknown dataset"


def test_the_best_epoch_is_the_lowest_selection() -> None:
    history = [{"epoch": 1.0, "validation/selection": 3.0}, {"epoch": 2.0, "validation/selection": 1.0}, {"epoch": 3.0}]
    assert Experiment("a", "ixi", history=history).best_epoch == 2
    assert Experiment("a", "ixi").best_epoch is None


def test_differences_turn_with_their_order(found: Overview) -> None:
    a, b, *_ = dataset(found, "ixi").experiments
    there, back = difference(Measure("mae"), "test", a, b), difference(Measure("mae"), "test", b, a)
    assert there is not None
    assert back is not None
    assert there.interval is not None
    assert back.interval == (-there.interval[1], -there.interval[0])
    assert there.mean == -back.mean < 0
    assert difference(Measure("nothing"), "test", a, b) is None


def test_digests_follow_the_content(repository: Path, tmp_path: Path, found: Overview) -> None:
    tree = read(repository / "params.yaml")
    assert collect(tree, repository / "reports").digest == found.digest
    shutil.copytree(repository / "reports", tmp_path / "reports")
    path = tmp_path / "reports/registry/ixi-noreg.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 7}))
    assert collect(tree, tmp_path / "reports").digest != found.digest


def test_letters_go_on_after_the_last_one() -> None:
    assert [letter(n) for n in (0, 25, 26, 52)] == ["A", "Z", "A1", "A2"]


# --- images


def test_equal_images_are_kept_once(tmp_path: Path) -> None:
    for experiment in ("a", "b"):
        (tmp_path / experiment).mkdir()
        (tmp_path / experiment / "input.png").write_bytes(b"same")
    files = ImageFiles(tmp_path)
    assert files.add("a", "input.png", "input", 0) == files.add("b", "input.png", "input", 0)
    images, left_out = files.fitting(100)
    assert list(images.values()) == ["data:image/png;base64,c2FtZQ=="]
    assert left_out == 0


def test_what_does_not_fit_is_left_out_by_kind(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    kinds = ["checkerboard", "error", "prediction", "input"]
    for kind in kinds:
        (tmp_path / "a" / f"{kind}.webp").write_bytes(kind[:1].encode() * 10)
    files = ImageFiles(tmp_path)
    keys = {kind: files.add("a", f"{kind}.webp", kind, 0) for kind in kinds}
    images, left_out = files.fitting(25)
    assert set(images) == {keys["prediction"], keys["input"]}
    assert left_out == 2


@pytest.mark.parametrize("file", ["../b/secret.png", "missing.png", "notes.txt", "/etc/hostname"])
def test_only_images_of_the_experiment_s_own_folder_are_taken(tmp_path: Path, file: str) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "b/secret.png").write_bytes(b"x")
    (tmp_path / "a/notes.txt").write_bytes(b"x")
    assert ImageFiles(tmp_path).add("a", file, "input", 0) is None
