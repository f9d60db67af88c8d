"""Registered versions, the champion's rule, pulling by name, what the registry stores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors import safe_open

from equisynth import store
from equisynth.champion import Candidate, RegistrySettings, choose_champion
from equisynth.datasets.prepared import DatasetInfo, write_case, write_info
from equisynth.errors import UserError
from equisynth.files import read_json, sha256, write_json
from equisynth.registry import Pulled, pull, register, resolve
from equisynth.tracking import run_of
from equisynth.validation import validate
from mlflow_repository import (
    make_image,
    make_metrics,
    make_settings,
    write_model,
)

pytest_plugins = ["mlflow_repository"]
OLD = Candidate("old", "demo", "d1", "validate.mae", 0.20)
NEW = replace(OLD, model_sha256="new", value=0.19)


def enrol(experiment: str, mae: float, seed: int, scale: str = "demo", force: bool = False, version: str | None = None):
    """Writes a model with its metrics and registers it."""
    settings = make_settings(experiment=experiment, scale=scale)
    folder = Path("models") / experiment
    write_model(folder, settings, seed)
    sha, metrics = sha256(folder / "model.safetensors"), make_metrics(mae)
    candidate = Candidate(sha, scale, version or "d1", "validate.mae", mae)
    return register(folder, settings, run_of(experiment), candidate, metrics, RegistrySettings(), force)


@pytest.mark.parametrize(
    ("new", "old", "force", "promote", "forced"),
    [
        (NEW, None, False, True, False),
        (NEW, OLD, False, True, False),
        (replace(NEW, value=0.20), OLD, False, False, False),
        (replace(NEW, value=0.21), OLD, False, False, False),
        (replace(NEW, value=0.21), OLD, True, True, True),
        (replace(NEW, value=None), None, True, False, False),
        (replace(NEW, value=float("nan")), OLD, True, False, False),
        (replace(NEW, measure="validate.ssim"), OLD, False, False, False),
        (replace(NEW, measure="validate.ssim"), OLD, True, True, True),
        (NEW, replace(OLD, value=None), False, False, False),
        (NEW, replace(OLD, value=None), True, True, True),
        (replace(NEW, dataset_version="d2"), OLD, False, False, False),
        (replace(NEW, dataset_version="d2"), OLD, True, True, True),
        (NEW, replace(OLD, scale="paper"), False, False, False),
        (NEW, replace(OLD, scale="paper"), True, False, False),
        (replace(NEW, scale="paper"), replace(OLD, scale="paper"), False, True, False),
        (replace(NEW, model_sha256="old"), OLD, True, False, False),
    ],
)
def test_the_rule(new: Candidate, old: Candidate | None, force: bool, promote: bool, forced: bool) -> None:
    decision = choose_champion(new, old, force)
    assert (decision.promote, decision.forced) == (promote, forced)
    assert decision.reason


@pytest.mark.parametrize(("again", "promote"), [(0.25, True), (0.19, False), (0.10, False)])
@pytest.mark.parametrize("old", [OLD, replace(OLD, measure="other"), replace(OLD, value=None)])
def test_a_champion_measured_otherwise_is_measured_again(old: Candidate, again: float, promote: bool) -> None:
    new = replace(NEW, dataset_version="d2")
    calls = []

    def evaluate() -> float:
        calls.append(again)
        return again

    decision = choose_champion(new, old, evaluate_champion=evaluate)
    assert (decision.promote, decision.forced) == (promote, False)
    assert f"{again:.6g}" in decision.reason
    assert len(calls) == 1
    assert choose_champion(NEW, OLD, evaluate_champion=evaluate).promote
    assert not choose_champion(new, replace(old, scale="paper"), True, evaluate).promote
    assert len(calls) == 1, "what decides without it needs no evaluation"


def test_measures_are_errors_on_the_validation_split(repository: Path) -> None:
    wrong_ones = (
        "train/similarity",
        "validation/selection",
        "validation.selection",
        "test.mae",
        "validate.ssim",
        "mae",
    )
    for wrong in wrong_ones:
        with pytest.raises(UserError, match=rf"registry\.measure: .*'{wrong}' chooses no champion") as caught:
            validate(RegistrySettings, {"measure": ["validate.mae", wrong]}, "registry")
        assert "\n" not in str(caught.value)
    options = validate(RegistrySettings, {"measure": ["validate.mae", "validate.full_valid_mae"]}, "registry")
    assert options.choose({"validate": {"mae": 0.1, "full_valid_mae": 0.2}}) == ("validate.mae", 0.1)
    assert options.choose({"validate": {"full_valid_mae": 0.2}}) == ("validate.full_valid_mae", 0.2)
    assert options.choose({"test": {"mae": 0.2}}) == ("validate.mae", None)


def test_the_champion_moves_to_the_better_model_only_and_weights_are_registered_once(repository: Path) -> None:
    first = enrol("ixi-a", 0.20, seed=1)
    worse = enrol("ixi-b", 0.30, seed=2)
    better = enrol("ixi-c", 0.10, seed=3)
    again = enrol("ixi-c", 0.10, seed=3)
    assert [first.version, worse.version, better.version, again.version] == [1, 2, 3, 3]
    assert [first.champion, worse.champion, better.champion, again.champion] == [True, False, True, True]
    assert pull("models:/ixi@champion") == pull("models:/ixi/3")
    tags = store.open_store().get_model_version("ixi", "3").tags
    expected = {"scale": "demo", "licence": "CC BY-SA 3.0", "dataset_version": "d1", "experiment": "ixi-c"}
    assert expected.items() <= tags.items()
    assert float(tags["measured/d1/validate.mae"]) == 0.10
    assert {"test.ssim", "promotion", "model_sha256"} <= tags.keys()
    assert store.open_store().get_model_version("ixi", "3").run_id


def test_a_pulled_model_is_the_registered_one_without_pickles(repository: Path) -> None:
    enrol("ixi-a", 0.20, seed=1)
    folder = pull("models:/ixi@champion")
    for name in ("model.safetensors", "model.json"):
        assert (folder / name).read_bytes() == (repository / "models/ixi-a" / name).read_bytes()
    stored = [path for path in folder.parent.rglob("*") if path.is_file()]
    assert len(stored) >= 6
    for path in stored:
        content = path.read_bytes()
        assert not content.startswith((b"\x80", b"PK", b"\x1f\x8b")), f"{path}: pickle or archive"
        if path.suffix == ".safetensors":
            with safe_open(path, framework="np") as file:
                assert len(file.keys()) > 2
        elif path.suffix == ".json":
            assert json.loads(content)
        elif path.suffix == ".yaml" or path.name == "MLmodel":
            assert yaml.safe_load(content)
        else:
            assert path.suffix in (".py", ".txt"), path
            assert content.decode("utf-8").isprintable() or b"\n" in content
    required = {line.split("==")[0] for line in (folder.parent / "requirements.txt").read_text().splitlines()}
    assert {"torch", "numpy", "scipy", "nibabel", "safetensors", "mlflow"} <= required
    assert not required & {"dvc", "optuna", "SimpleITK", "accelerate"}
    described = (folder.parent / "MLmodel").read_text()
    assert str(repository) not in described
    assert str(Path(store.__file__).parent) not in described


LOAD = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
refused = set(sys.argv[2:])
sys.meta_path.insert(0, Refuse())
import numpy as np
from equisynth.inference import translate_volume
from equisynth.model import load_model
model = load_model(sys.argv[1])
np.save("result.npy", translate_volume(model.predict, np.load("image.npy"), None, model.description))
refused.remove("mlflow")
from equisynth.registry import resolve
load_model(resolve("models:/ixi@champion").folder)
"""
EXTRAS = (
    "mlflow", "dvc", "optuna", "accelerate", "joblib", "numba", "itk", "SimpleITK", "nilearn", "matplotlib",
    "pytorch_fid", "torchvision", "intensity_normalization",
)  # fmt: skip


def test_it_loads_where_only_what_applying_needs_is_installed(repository: Path) -> None:
    """From a folder, and with MLflow by name."""
    from equisynth.inference import translate_volume
    from equisynth.model import load_model

    enrol("ixi-a", 0.20, seed=1)
    np.save("image.npy", make_image())
    subprocess.run([sys.executable, "-c", LOAD, str(pull("models:/ixi/1")), *EXTRAS], check=True)
    model = load_model("models/ixi-a")
    expected = translate_volume(model.predict, make_image(), None, model.description)
    np.testing.assert_array_equal(np.load("result.npy"), expected)


def test_a_pulled_model_says_where_it_came_from(repository: Path) -> None:
    first = enrol("ixi-a", 0.20, seed=1)
    found = resolve("models:/ixi@champion")
    run_id = store.open_store().get_model_version("ixi", "1").run_id
    assert found == Pulled(pull("models:/ixi/1"), "ixi", first.version, run_id, "champion")
    assert resolve("models:/ixi/1").alias is None
    assert resolve("models/ixi-a") == Pulled(Path("models/ixi-a"))


def test_pulling_works_from_another_folder(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enrol("ixi-a", 0.20, seed=1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{repository / 'mlflow.db'}")
    monkeypatch.chdir("/")
    assert (pull("models:/ixi@champion") / "model.json").is_file()


def test_pulling_a_folder(repository: Path) -> None:
    write_model(repository / "models/ixi-a", make_settings())
    assert pull("models/ixi-a") == Path("models/ixi-a")


def test_wrong_names_are_clear(repository: Path) -> None:
    enrol("ixi-a", 0.20, seed=1)
    for uri, message in {
        "models:/brain@champion": "no registered model 'brain'; registered: ixi",
        "models:/ixi@best": "versions 1 and aliases champion",
        "models:/ixi/7": "versions 1 and aliases champion",
        "models:/ixi": "expected models:/NAME@ALIAS",
        "models/none": "not found",
        "data": "holds no model.safetensors",
    }.items():
        with pytest.raises(UserError, match=message):
            pull(uri)


def test_looking_up_a_name_makes_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"mlflow\.db: not found"):
        pull("models:/ixi@champion")
    assert not os.listdir()


def test_mlflow_loads_the_model_and_translates_a_whole_image(repository: Path) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    from equisynth.inference import translate_volume
    from equisynth.model import load_model

    enrol("ixi-a", 0.20, seed=1)
    image = make_image(20)
    found = mlflow.pyfunc.load_model("models:/ixi@champion").predict(image)
    model = load_model("models/ixi-a")
    np.testing.assert_array_equal(found, translate_volume(model.predict, image, None, model.description))
    with pytest.raises(MlflowException, match="shape"):
        mlflow.pyfunc.load_model("models:/ixi@champion").predict(image[None])


def prepare(repository: Path, voxel_size: float = 1.0, brightness: float = 1.0) -> None:
    """A prepared dataset of three pictures whose label is the input."""
    data = make_settings().data.model_dump() | {"voxel_size": (voxel_size, voxel_size)}
    splits = {"train": ("a",), "validate": ("b",), "test": ("c",)}
    for case in "abc":
        arrays = {"input": make_image() * brightness, "label": make_image(), "label_aligned": make_image()}
        write_case(repository / "data/prepared/ixi", case, arrays, np.eye(4), n_dims=2)
    info = DatasetInfo(**data, name="ixi", splits=splits, preparation={"brightness": brightness})
    write_info(repository / "data/prepared/ixi", info)


def parameters() -> None:
    sections = {key: {} for key in ("sources", "datasets", "methods", "pipeline", "search", "evaluation")}
    tree = {"scale": "demo", "seed": 0, "scales": {"demo": {}}, "registry": {"alias": "champion"}, **sections}
    Path("params.yaml").write_text(yaml.safe_dump(tree))


def stage_run(experiment: str, seed: int, mae: float, force: bool = False, **changes: Any) -> dict[str, Any]:
    from equisynth.stages import register as stage

    write_model(Path("models") / experiment, make_settings(experiment=experiment, **changes), seed)
    write_json(f"reports/metrics/{experiment}.json", make_metrics(mae))
    stage.run(experiment, force)
    return dict(read_json(f"reports/registry/{experiment}.json"))


def test_on_another_dataset_the_champion_is_evaluated_again(repository: Path) -> None:
    """Its own figure there, found by its own predictions, decides; figures on both datasets are kept apart."""
    parameters()
    prepare(repository)
    stage_run("ixi-a", 1, mae=0.001)
    old = store.open_store().get_model_version("ixi", "1").tags
    prepare(repository, brightness=0.5)
    worse = stage_run("ixi-b", 2, mae=1e9)
    tags = store.open_store().get_model_version("ixi", "1").tags
    (added,) = set(tags) - set(old)
    measured = float(tags[added])
    assert {key: tags[key] for key in old} == old
    assert added.startswith("measured/json-")
    assert measured > 0.001
    assert not worse["champion"]
    assert f"{measured:.6g}" in worse["reason"]
    better = stage_run("ixi-c", 3, mae=measured - 1e-6)  # far worse than 0.001, which was measured on other images
    assert better["champion"]
    assert not better["forced"]


def test_a_champion_that_cannot_be_evaluated_stays_unless_forced(repository: Path) -> None:
    parameters()
    prepare(repository)
    stage_run("ixi-a", 1, mae=0.2)
    prepare(repository, voxel_size=2.0)
    data = make_settings().data.model_dump() | {"voxel_size": (2.0, 2.0)}
    kept = stage_run("ixi-b", 2, mae=0.1, data=data)
    assert not kept["champion"]
    assert "voxel_size" in kept["reason"]
    assert "--force" in kept["reason"]
    forced = stage_run("ixi-b", 2, mae=0.1, data=data, force=True)
    assert (forced["champion"], forced["forced"]) == (True, True)
    tags = store.open_store().get_model_version("ixi", "2").tags
    assert "voxel_size" in tags["forced"]
    for path in resolve("models:/ixi/2").folder.iterdir():
        path.unlink()
    prepare(repository, voxel_size=2.0, brightness=0.5)
    assert "holds no model.safetensors" in stage_run("ixi-c", 3, mae=0.01, data=data)["reason"]


def test_the_stage_logs_the_evaluation_and_writes_what_it_decided(repository: Path) -> None:
    from equisynth.stages import register as stage

    parameters()
    write_model(Path("models/ixi-noreg"), make_settings())
    write_json("reports/metrics/ixi-noreg.json", make_metrics(0.2))
    for _ in range(2):
        stage.run("ixi-noreg")
    report = read_json("reports/registry/ixi-noreg.json")
    assert report["uri"] == "models:/ixi/1"
    assert report["champion"] is True
    run = store.open_store().get_run(report["run"])
    assert run.data.metrics["validate/mae"] == 0.2
    assert run.outputs.model_outputs
