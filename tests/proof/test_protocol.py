"""The runs are those of the reference protocol: the published settings with what it changes, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from equisynth import params
from equisynth.errors import UserError
from equisynth.proof import protocol
from equisynth.proof.protocol import Run

ROOT = Path(__file__).parents[2]
CHANGED = {"experiment", "scale", "patch_size", "features", "normalization_groups", "epochs", "label_deformation"}


@pytest.fixture(scope="module")
def specified() -> protocol.Protocol:
    return protocol.read(ROOT / protocol.FILE)


@pytest.fixture(scope="module")
def tree() -> params.Tree:
    return params.read(ROOT / "params.yaml")


@pytest.mark.parametrize("method", ["lr_eqsim_com", "lr_defsim", "lr_noreg_aug", "lc_eqsim_com"])
def test_settings_are_the_published_ones_but_for_size_and_misalignment(
    method: str, specified: protocol.Protocol, tree: params.Tree
) -> None:
    found = protocol.settings(specified, tree, Run("photographs", method, 0)).model_dump()
    published = params.resolve(tree, f"coco-{method}", "paper").model_dump()
    assert {key for key in found if found[key] != published[key]} == CHANGED
    assert found["patch_size"] == (64, 64)
    assert found["features"]["i2i"] == (16, 32, 64)
    registration = (16, 32, 32) if "noreg" not in method else None
    assert {found["features"][f"{name}_reg"] for name in ("rigid", "cross_modality", "intra_modality")} == {
        registration
    }
    assert (found["normalization_groups"], found["epochs"], found["batch_size"]) == (8, 30, 4)


def test_an_epoch_has_64_steps(specified: protocol.Protocol) -> None:
    assert specified.photographs.crops == {"train": 256, "validate": 24, "test": 48}
    assert specified.photographs.crops["train"] // 4 == 64


def test_misalignments_of_the_table(specified: protocol.Protocol) -> None:
    random, constant = specified.misalignments["lr"], specified.misalignments["lc"]
    assert (random.degree_range.upper, random.magnitude_range.upper, random.translation_range.upper) == (
        (6,), (5, 5), (4, 4),
    )  # fmt: skip
    assert (constant.degree_range.lower, constant.magnitude_range.lower) == ((-4,), (5, -5))
    assert (constant.center_range.lower, constant.width_range.lower) == ((0.3, 0.7), (0.2, 0.15))
    assert constant.translation_range.lower == (-3, 3)
    for name in ("lc", "sc"):
        assert all(ranges.lower == ranges.upper for _, ranges in specified.misalignments[name])
    for name in ("lr", "sr"):
        assert all(a < b for _, ranges in specified.misalignments[name] for a, b in zip(*_bounds(ranges), strict=True))


@pytest.mark.parametrize(("large", "small"), [("lr", "sr"), ("lc", "sc")])
def test_small_misalignments_are_a_tenth(large: str, small: str, specified: protocol.Protocol) -> None:
    for key in ("degree_range", "magnitude_range", "translation_range"):
        wide, narrow = (getattr(specified.misalignments[name], key) for name in (large, small))
        assert narrow.upper == pytest.approx([value / 10 for value in wide.upper])
        assert narrow.lower == pytest.approx([value / 10 for value in wide.lower])


def test_short_part_holds_the_runs_that_were_asked_for(specified: protocol.Protocol) -> None:
    names = [run.name for run in protocol.runs(specified, "short")]
    counts = {
        "photographs-lc_noreg_aug": 3, "photographs-lc_eqsim_com": 3, "photographs-lc_defsim": 1,
        "photographs-lr_noreg_aug": 1, "photographs-lr_defsim": 1, "photographs-lr_eqsim_com": 1,
        "brain-noreg-seed": 1, "brain-noreg_on_aligned": 1, "brain-eqsim_com_eqadv": 1,
    }  # fmt: skip
    assert {part: sum(name.startswith(f"proof-{part}") for name in names) for part in counts} == counts
    assert len(names) == sum(counts.values())


def test_full_part_holds_all_ablations_in_all_regimes_thrice_and_the_short_part(
    specified: protocol.Protocol, tree: params.Tree
) -> None:
    runs = protocol.runs(specified, "full")
    assert set(protocol.runs(specified, "short")) <= set(runs)
    photographs = {name for name in tree["methods"] if name.partition("_")[0] in specified.misalignments}
    for method in photographs:
        assert {run.seed for run in runs if run.method == method} == {0, 1, 2}, method
    for run in runs:
        protocol.settings(specified, tree, run)


def test_names_tell_runs_apart(specified: protocol.Protocol) -> None:
    runs = protocol.runs(specified, "full")
    assert len({run.name for run in runs}) == len(runs)
    assert all(protocol.find(specified, run.name) == run for run in runs)
    aligned = Run("brain", "noreg", 1, "aligned")
    assert (aligned.name, aligned.variant, aligned.regime) == (
        "proof-brain-noreg_on_aligned-seed1", "noreg_on_aligned", None,
    )  # fmt: skip
    with pytest.raises(UserError, match="no part has a run 'proof-x'"):
        protocol.find(specified, "proof-x")


def test_seeds_and_labels_reach_the_settings(specified: protocol.Protocol, tree: params.Tree) -> None:
    found = protocol.settings(specified, tree, Run("brain", "noreg", 2, "aligned"))
    assert (found.seed, found.trains_on_label, found.label_role) == (2, "aligned", "label_aligned")
    assert found.epochs == specified.brain.training["epochs"]
    assert protocol.settings(specified, tree, Run("brain", "noreg", 0)).trains_on_label == "deformed"


def test_no_picture_serves_two_splits(specified: protocol.Protocol) -> None:
    names = [Path(name).stem.split("_")[0] for pictures in specified.photographs.pictures.values() for name in pictures]
    assert len(set(names)) == len(names)  # motorcycle_left and motorcycle_right are one scene


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"photographs": {"crop": 0}}, "params.yaml: photographs.crop: found 0"),
        ({"fotographs": {}}, "fotographs: found {}, no such key"),
        ({"misalignments": {"lr": {"degree_range": {"lower": [2], "upper": [1]}}}}, "expected as many values"),
    ],
)
def test_wrong_files_end_in_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    content = yaml.safe_load((ROOT / protocol.FILE).read_text(encoding="utf-8"))
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(params.merge(content, change)), encoding="utf-8")
    with pytest.raises(UserError, match=message.replace("{", r"\{")) as error:
        protocol.read(path)
    assert "\n" not in str(error.value)


def test_missing_things_say_what_is_missing(specified: protocol.Protocol, tree: params.Tree, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not found in"):
        protocol.read(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(UserError, match="is not valid YAML"):
        protocol.read(tmp_path / "params.yaml")
    with pytest.raises(UserError, match="expected one of: short, full"):
        protocol.runs(specified, "all")
    with pytest.raises(UserError, match="no method 'lc_magic'"):
        protocol.settings(specified, tree, Run("photographs", "lc_magic", 0))
    without = specified.model_copy(update={"misalignments": {}})
    with pytest.raises(UserError, match="'lc' is missing"):
        protocol.settings(without, tree, Run("photographs", "lc_defsim", 0))


def test_plain_repro_knows_nothing_of_the_proof() -> None:
    """Its stages stand in a file of their own, work from the top, and go through the launcher."""
    assert "proof" not in (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    stages = yaml.safe_load((ROOT / "proof/dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert set(stages) == {"crops", "short", "full"}
    made = {out for stage in stages.values() for out in stage["outs"]} | {"data/prepared/ixi"}
    for name, stage in stages.items():
        assert stage["wdir"] == ".."
        assert stage["cmd"].startswith("bin/equisynth proof "), name
        assert all(dep in made or (ROOT / dep).exists() for dep in stage["deps"]), name


def _bounds(ranges: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return ranges.lower, ranges.upper
