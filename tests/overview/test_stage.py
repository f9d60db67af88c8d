"""The stage: writes the page, gives it to the experiments' runs, and passes over those without one."""

from __future__ import annotations

from pathlib import Path

import pytest

import overview_example
from equisynth.files import sha256
from equisynth.stages import overview
from equisynth.store import open_store
from equisynth.tracking import TrainingRun
from mlflow_repository import make_settings, migrated_database, repository, write_model

__all__ = ["migrated_database", "repository"]
TRAINED = "ixi-noreg"


def test_the_page_is_written_and_logged_to_the_runs_that_are_there(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overview_example.make_reports(repository, strange=False)
    settings, model = make_settings(experiment=TRAINED), Path("models") / TRAINED
    write_model(model, settings)
    with TrainingRun.start(settings, "c1", "0123456789abcdef0123456789abcdef.dir") as run:
        run.finish(sha256(model / "model.safetensors"))
    overview.run()
    first = overview.PAGE.read_bytes()
    assert [item.path for item in open_store().list_artifacts(run.run_id, "report")] == ["report/index.html"]
    captured = capsys.readouterr()
    assert "logged to 1 MLflow run" in captured.out
    assert "ixi-pix2pix: its run has no copy of the page" in captured.err
    overview.run()
    assert overview.PAGE.read_bytes() == first
