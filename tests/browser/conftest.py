"""A repository with two small runs, pictures and a registered model, as tests of the browser see it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from equisynth.files import sha256
from mlflow_repository import make_history, make_metrics, make_settings, write_model

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))


@pytest.fixture(scope="session")
def filled_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made through the program's own functions, on a fresh database."""
    from equisynth.registry import Candidate, RegistrySettings, register
    from equisynth.report import CasePictures, draw_case, draw_curves, draw_deformation, to_png
    from equisynth.tracking import TrainingRun, log_evaluation, log_files

    folder = tmp_path_factory.mktemp("repository")
    random = np.random.RandomState(0)
    image = np.kron(random.rand(6, 7, 5), np.ones((4, 4, 4))).astype(np.float32)
    case = CasePictures(
        "phantom001", 3, (3.0, 3.0, 3.6), 1 - image, image + 0.05, image, np.roll(image, 2, 0), None, ("T2", "PD")
    )
    field = np.stack([2 * np.sin(np.arange(24) / 4)[:, None, None] * np.ones(image.shape)] * 3).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        pictures = Path("reports/pictures")
        pictures.mkdir(parents=True)
        (pictures / "1-curves.png").write_bytes(to_png(draw_curves(make_history(3), 3)))
        (pictures / "2-prediction-phantom001.png").write_bytes(to_png(draw_case(case)))
        grid = draw_deformation(field, (3.0, 3.0, 3.6), "phantom001: deformation that misaligned its label")
        (pictures / "3-deformation-phantom001.png").write_bytes(to_png(grid))
        for seed, experiment in enumerate(("ixi-noreg", "ixi-eqsim_com_eqadv")):
            settings, model = make_settings(experiment=experiment), Path("models") / experiment
            write_model(model, settings, seed)
            with TrainingRun.start(settings, "c1", "0123456789abcdef0123456789abcdef.dir") as run:
                for record in make_history(3):
                    values = {key: value / (seed + 1) for key, value in record.items() if key != "epoch"}
                    run.log_epoch(int(record["epoch"]), values)
                run.finish(sha256(model / "model.safetensors"))
            metrics = make_metrics(0.2 / (seed + 1))
            log_evaluation(run.run_id, metrics)
            log_files(run.run_id, pictures)
            sha = sha256(model / "model.safetensors")
            candidate = Candidate(sha, "demo", "d1", "validate.mae", metrics["validate"]["mae"])
            register(model, settings, run.run_id, candidate, metrics, RegistrySettings())
    return folder


@pytest.fixture(scope="session", autouse=True)
def _chromium() -> None:
    """Without a browser these tests are skipped; where CI is set they fail."""
    from screenshots import chromium

    if chromium() is None:
        message = "chromium not found: apt-get install chromium, or set CHROMIUM to its path"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
