"""Registered versions, the champion's rule, pulling by name, what the registry stores."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from equisynth import store
from equisynth.errors import UserError
from equisynth.files import read_json, sha256, write_json
from equisynth.registry import Candidate, RegistrySettings, choose_champion, pull, register
from equisynth.tracking import run_of
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
        (replace(NEW, dataset_version="d2"), OLD, False, False, False),
        (replace(NEW, dataset_version="d2"), OLD, True, True, True),
        (NEW, replace(OLD, scale="paper"), False, False, False),
        (NEW, replace(OLD, scale="paper"), True, False, False),
        (replace(NEW, scale="paper"), replace(OLD, scale="paper"), False, True, False),
        (replace(NEW, measure="validate.ssim"), OLD, False, False, False),
        (replace(NEW, measure="validate.ssim"), OLD, True, True, True),
        (replace(NEW, model_sha256="old"), OLD, True, False, False),
    ],
)
def test_the_rule(new: Candidate, old: Candidate | None, force: bool, promote: bool, forced: bool) -> None:
    decision = choose_champion(new, old, force)
    assert (decision.promote, decision.forced) == (promote, forced)
    assert decision.reason


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
    assert float(tags["validate.mae"]) == 0.10
    assert store.open_store().get_model_version("ixi", "3").run_id


def test_a_pulled_model_is_the_registered_one_without_pickles(repository: Path) -> None:
    enrol("ixi-a", 0.20, seed=1)
    folder = pull("models:/ixi@champion")
    for name in ("model.safetensors", "model.json"):
        assert (folder / name).read_bytes() == (repository / "models/ixi-a" / name).read_bytes()
    stored = [path for path in folder.parent.rglob("*") if path.is_file()]
    assert {path.suffix for path in stored} <= {".safetensors", ".json", ".py", ".yaml", ".txt", ""}
    for path in stored:
        assert not path.read_bytes().startswith((b"\x80", b"PK")), f"{path} is a pickle or an archive that may hold one"


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


def test_the_stage_logs_the_evaluation_and_writes_what_it_decided(repository: Path) -> None:
    from equisynth.stages import register as stage

    sections = {key: {} for key in ("sources", "datasets", "methods", "pipeline", "search", "evaluation")}
    parameters = {"scale": "demo", "seed": 0, "scales": {"demo": {}}, "registry": {"alias": "champion"}, **sections}
    Path("params.yaml").write_text(yaml.safe_dump(parameters))
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
