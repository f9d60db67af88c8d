"""The small programs around the package: the lock file, the timings table, the launcher."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pipeline_repository import ROOT as REPOSITORY

LOCKED = dict(
    line.split("==")
    for line in (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
)


def run(*command: str | Path, **keywords: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, **keywords)  # type: ignore[call-overload]


def test_lock_holds_exact_public_versions_only() -> None:
    for name, version in LOCKED.items():
        assert re.fullmatch(r"[a-z0-9.-]+", name), name
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), f"{name}=={version}: no local part, link or path"
        assert not name.startswith(("nvidia-", "cuda-", "triton", "equisynth"))


def test_lock_holds_every_direct_dependency() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    section = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    names = {name.lower().replace("_", "-") for name in re.findall(r'^    "([A-Za-z0-9_.-]+)', section, re.MULTILINE)}
    assert {"torch", "dvc", "mlflow", "pytest"} <= names
    assert names <= set(LOCKED)


def test_timings_table_shows_the_stages_that_ran(tmp_path: Path) -> None:
    folder = tmp_path / "timings"
    folder.mkdir()
    for index, (stage, seconds) in enumerate([("old", 100.0), ("prepare@a", 1.5), ("train@a", 20.25)]):
        path = folder / f"{stage}.json"
        path.write_text(json.dumps({"stage": stage, "seconds": seconds, "peak_memory_mib": 512.0}), encoding="utf-8")
        os.utime(path, (1000 + index, 1000 + index))
    since = tmp_path / "started"
    since.touch()
    os.utime(since, (1001, 1001))
    script = REPOSITORY / "scripts/timings.py"
    shown = run(sys.executable, script, "--folder", folder, "--since", since).stdout
    assert re.search(r"prepare@a +1\.5 +512\ntrain@a +20\.2 +512\ntotal +21\.8", shown), shown
    assert "old" not in shown
    os.utime(since, (2000, 2000))
    assert "up to date" in run(sys.executable, script, "--folder", folder, "--since", since).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the launcher, a program on the path and one in .venv that say who they are."""
    for folder, name in (("bin", ""), (".venv/bin", "own environment"), ("elsewhere", "on the path")):
        program = tmp_path / folder / "equisynth"
        program.parent.mkdir(parents=True)
        program.write_text(f'#!/bin/sh\necho "{name}:" "$@"\n' if name else launcher().read_text(encoding="utf-8"))
        program.chmod(0o755)
    return tmp_path


def launcher() -> Path:
    return REPOSITORY / "bin/equisynth"


@pytest.mark.parametrize(
    ("path", "who"),
    [
        ("elsewhere", "on the path"),
        ("bin", "own environment"),  # finds itself first: must not call itself for ever
        ("", "own environment"),
    ],
)
def test_launcher_prefers_the_active_environment(path: str, who: str, checkout: Path) -> None:
    search = os.pathsep.join([str(checkout / path)] * bool(path) + ["/usr/bin", "/bin"])
    shown = run(checkout / "bin/equisynth", "train", "a b", env={"PATH": search})
    assert shown.stdout == f"{who}: train a b\n", shown


def test_launcher_without_an_installation_says_what_to_do(checkout: Path) -> None:
    (checkout / ".venv/bin/equisynth").unlink()
    shown = run(checkout / "bin/equisynth", "train", env={"PATH": "/usr/bin:/bin"})
    assert shown.returncode == 2
    assert "make env" in shown.stderr
    assert shown.stderr.count("\n") == 1


def test_pipeline_commands_go_through_the_launcher() -> None:
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for name, stage in stages.items():
        assert stage.get("do", stage)["cmd"].startswith("bin/equisynth "), name
    assert os.access(launcher(), os.X_OK)


def test_figures_of_every_evaluated_experiment_stand_in_the_readme(tmp_path: Path) -> None:
    values = {"mae": 12.345, "psnr": 20.06, "ssim": 0.7004}
    evaluation = {
        "test": {"label": "label_registered", "cases": {"a": values, "b": values}, "pooled": values},
        "references": {"lookup_table": {**values, "mae": 0.5, "residual_rmse": 1.0}},
        "fid": {"computed": False, "reason": "no weights and no network"},
    }
    (tmp_path / "reports/evaluation").mkdir(parents=True)
    (tmp_path / "params.yaml").write_text("{scale: demo, pipeline: {ct-one: {}, mr-two: {}, absent-three: {}}}")
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- figures:begin -->\nold\n<!-- figures:end -->\nafter\n")
    script = REPOSITORY / "scripts/figures.py"
    assert "run `make demo` first" in run(sys.executable, script, cwd=tmp_path).stderr
    for experiment in ("ct-one", "mr-two"):
        (tmp_path / f"reports/evaluation/{experiment}.json").write_text(json.dumps(evaluation))
    assert run(sys.executable, script, "--write", readme, cwd=tmp_path).returncode == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- figures:begin -->\n")
    assert text.endswith("FID: not computed (no weights).\n<!-- figures:end -->\nafter\n")
    assert "| **`ct-one`** | 12.3 | 20.1 | 0.700 |\n| best lookup table of intensities | 0.500 | 20.1 | 0.700 |" in text
    assert "**`mr-two`**" in text
    assert "2 cases, against the label that elastix registered" in text
    assert "old" not in text
    assert "absent-three" not in text
