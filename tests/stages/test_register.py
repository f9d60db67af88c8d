"""Versions that nothing can be compared by, and champions measured as a candidate was."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from equisynth.champion import Candidate
from equisynth.errors import UserError
from equisynth.evaluation import kinds
from equisynth.evaluation.names import PREFIXES
from equisynth.files import read_json, write_json
from equisynth.registry import resolve
from equisynth.stages import register
from mlflow_repository import make_settings, write_model
from pipeline_repository import ROOT

pytest_plugins = ["mlflow_repository"]
HEALTH = {"deformation_folded_share": 0.0, "deformation_mean_displacement_mm": 1.5}


def trained(experiment: str, seed: int, validate: dict[str, float]) -> None:
    """A model with its evaluation."""
    write_model(Path("models") / experiment, make_settings(experiment=experiment), seed)
    fid = {"computed": False, "reason": "no weights"}
    write_json(Path("reports/metrics") / f"{experiment}.json", {"validate": validate, "test": validate, "fid": fid})


@pytest.fixture
def parameters(repository: Path) -> Path:
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    return repository


def test_without_an_error_to_compare_by_a_version_is_registered_and_the_line_says_what_to_do(
    parameters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained("ixi-a", 1, HEALTH)
    register.run("ixi-a")
    line = capsys.readouterr().out
    assert line.startswith("models:/ixi/1 is not models:/ixi@champion (its evaluation holds no error on the validation")
    assert line.count("\n") == 1
    assert "label_aligned" in line
    assert read_json(Path("reports/registry/ixi-a.json"))["reason"] in line
    assert resolve("models:/ixi/1").version == 1
    with pytest.raises(UserError, match="has versions 1 and aliases none"):
        resolve("models:/ixi@champion")

    (said,) = re.findall(r'python -c "(.*)"', line)
    subprocess.run([sys.executable, "-c", said], check=True)
    assert resolve("models:/ixi@champion").version == 1
    register.run("ixi-a")
    assert capsys.readouterr().out == "models:/ixi/1 is models:/ixi@champion (is the champion already)\n"
    trained("ixi-b", 2, HEALTH)
    register.run("ixi-b", force=True)
    assert "models:/ixi/2 is not models:/ixi@champion" in capsys.readouterr().out
    assert resolve("models:/ixi@champion").version == 1


def test_an_evaluation_without_a_listed_measure_says_which_to_list(
    parameters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(re.sub(r"measure: \[validate.*\]", "measure: [validate.local_mae]", text))
    trained("ixi-a", 1, {"mae": 0.2, "ssim": 0.9, "full_valid_mse": 0.1})
    register.run("ixi-a")
    line = capsys.readouterr().out
    assert "none of registry.measure in params.yaml; it holds validate.mae, validate.full_valid_mse: list one" in line
    assert "python -c" not in line


@pytest.mark.parametrize("kind", PREFIXES)
def test_a_champion_is_measured_by_the_kind_of_the_candidate_s_measure(
    parameters: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    asked: list[kinds.Translated] = []

    def evaluate(split: kinds.Translated) -> dict[str, Any]:
        asked.append(split)
        return {"pooled": {"mae": 0.25}}

    dataset = SimpleNamespace(cases=lambda split: ["a"], require=lambda *_: None, info=SimpleNamespace(name="ixi"))
    settings = make_settings()
    monkeypatch.setattr(register, "dataset_version", lambda prepared: "d1")
    monkeypatch.setattr(
        register, "load_model", lambda folder: SimpleNamespace(description=SimpleNamespace(settings=settings))
    )
    monkeypatch.setattr(register, "open_dataset", lambda *_: dataset)
    for other in kinds.KINDS:
        monkeypatch.setitem(kinds.KINDS, other, evaluate if other == kind else pytest.fail)
    candidate = Candidate("new", "demo", "d1", f"validate.{PREFIXES[kind]}mae", 0.2)
    assert register.evaluate_like(candidate, Path("prepared"), settings, Path("champion")) == 0.25
    assert [split.split for split in asked] == ["validate"]
