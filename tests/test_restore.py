"""Runs and versions from outputs alone."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from equisynth import restore, store, tracking
from equisynth.errors import UserError
from equisynth.files import sha256, write_json
from equisynth.registry import resolve
from mlflow_repository import make_metrics, make_settings, write_model

pytest_plugins = ["mlflow_repository"]
VERSION = "0123456789abcdef.dir"


def write_outputs(experiment: str, seed: int, mae: float, version: int | None = None) -> None:
    """What ``dvc pull`` brings of one experiment."""
    write_model(Path("models") / experiment, make_settings(experiment=experiment), seed)
    write_json(f"reports/metrics/{experiment}.json", make_metrics(mae))
    if version is not None:
        write_json(f"reports/registry/{experiment}.json", {"version": version})
    pictures = Path("reports/pictures") / experiment
    pictures.mkdir(parents=True)
    for name in ("0-dataset.png", "1-curves.png", "2-case.png"):
        (pictures / name).write_bytes(name.encode())


@pytest.fixture
def clone(repository: Path) -> Path:
    """Outputs of two experiments, the better one registered first; a third is known and was never trained."""
    shutil.rmtree("data")
    entry = {"dataset": "ixi", "method": "noreg", "code": "supervised"}
    dataset = {"layout": "ixi", "data": {}, "preparation": {}, "training": {}}
    tree: dict[str, Any] = {
        "scale": "demo", "seed": 0, "sources": {}, "datasets": {"ixi": dataset},
        "methods": {"noreg": {"method": "supervised"}}, "scales": {"demo": {}},
        "pipeline": {"ixi-a": entry, "ixi-untrained": entry}, "search": {}, "evaluation": {}, "registry": {},
    }  # fmt: skip
    Path("params.yaml").write_text(yaml.safe_dump(tree))
    write_outputs("ixi-a", 1, mae=0.2, version=2)
    write_outputs("ixi-noreg", 2, mae=0.1, version=1)
    data = {"path": "data/prepared/ixi", "md5": VERSION}
    trained = {"deps": [data], "outs": [{"path": "models/ixi-a", "md5": "m.dir"}]}
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"prepare@ixi": {"outs": [data]}, "train@ixi-a": trained}}))
    return repository


def database() -> list[str]:
    """All that MLflow's database holds."""
    with closing(sqlite3.connect("mlflow.db")) as connection:
        return list(connection.iterdump())


def test_everything_comes_back_and_a_second_call_changes_nothing(
    clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    restore.run()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ixi-noreg: run rebuilt, 6 values of the evaluation logged, 3 pictures logged, ")
    assert "version 1 registered; models:/ixi/1 is models:/ixi@champion" in lines[0]
    assert "version 2 registered; models:/ixi/2 is not models:/ixi@champion" in lines[1]
    assert lines[2] == "ixi-untrained: has no outputs here, nothing to restore"
    client = store.open_store()
    version = client.get_model_version("ixi", "2")
    assert version.tags["dataset_version"] == VERSION
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags[tracking.REBUILT] == "true"
    assert run.data.tags[tracking.DATASET_VERSION] == VERSION
    assert run.data.tags[tracking.MODEL] == sha256("models/ixi-a/model.safetensors")
    assert run.data.params["loss.similarity"] == "mae"
    assert run.data.metrics["validate/mae"] == 0.2
    assert len(client.get_metric_history(run.info.run_id, "validation/selection")) == 3
    for name in ("0-dataset.png", "2-case.png"):
        picture = client.download_artifacts(run.info.run_id, f"pictures/{name}")
        assert Path(picture).read_bytes() == name.encode()
    for name in ("model.safetensors", "model.json"):
        pulled = resolve("models:/ixi@champion").folder / name
        assert pulled.read_bytes() == Path("models/ixi-noreg", name).read_bytes()
    before, files = database(), sorted(Path("mlruns").rglob("*"))
    restore.run()
    assert database() == before
    assert sorted(Path("mlruns").rglob("*")) == files
    assert [line.split(";")[0] for line in capsys.readouterr().out.splitlines()[:2]] == [
        "ixi-noreg: nothing to do", "ixi-a: nothing to do",
    ]  # fmt: skip


def test_what_is_missing_is_named_and_the_others_are_restored(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("reports/metrics/ixi-noreg.json").unlink()
    shutil.rmtree("reports/pictures/ixi-noreg")
    with pytest.raises(UserError, match="1 of 3 experiments not restored; .*dvc pull"):
        restore.run()
    shown = capsys.readouterr()
    assert shown.err == (
        "ixi-noreg: not restored, missing: reports/metrics/ixi-noreg.json, reports/pictures/ixi-noreg\n"
    )
    assert "ixi-a: run rebuilt" in shown.out
    with pytest.raises(UserError, match="1 of 1"):
        restore.run(["ixi-untrained"])
    with pytest.raises(UserError, match="no experiment 'ixi-unknown'"):
        restore.run(["ixi-unknown"])


def test_one_experiment_alone_and_one_whose_dataset_nobody_knows(
    clone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    restore.run(["ixi-a"])
    assert capsys.readouterr().out.count("\n") == 1
    Path("dvc.lock").unlink()
    with pytest.raises(UserError, match="1 of 1"):
        restore.run(["ixi-noreg"])
    assert "dvc.lock does not say its version" in capsys.readouterr().err
    assert tracking.find_run("ixi-noreg", sha256("models/ixi-noreg/model.safetensors")) is None


def test_an_interrupted_restoring_is_completed(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class KilledError(Exception):
        pass

    def killed(*_: Any, **__: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(tracking.TrainingRun, "finish", killed)
        with pytest.raises(KilledError):
            restore.run(["ixi-a"])
    with monkeypatch.context() as patch:
        patch.setattr(restore, "enrol", killed)
        with pytest.raises(KilledError):
            restore.run(["ixi-a"])
    restore.run(["ixi-a"])
    client = store.open_store()
    (run,) = client.search_runs([client.get_experiment_by_name("ixi").experiment_id])
    assert run.info.status == "FINISHED"
    assert resolve("models:/ixi@champion").run_id == run.info.run_id
