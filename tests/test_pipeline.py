"""The whole pipeline through the real DVC and MLflow, on the smallest phantoms, in a repository of its own."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml

from inception import write_inception
from pipeline_repository import EXPERIMENT, Repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    repository = Repository.make(tmp_path_factory.mktemp("repository"))
    write_inception(repository.folder / "weights" / "fid_inception.pth")
    repository.run("dvc", "repro")
    return repository


def test_stages_leave_their_outputs(repository: Repository) -> None:
    for name in (
        f"models/{EXPERIMENT}/model.safetensors",
        f"models/{EXPERIMENT}/model.json",
        f"reports/history/{EXPERIMENT}.json",
        f"reports/metrics/{EXPERIMENT}.json",
        f"reports/evaluation/{EXPERIMENT}.json",
        f"reports/registry/{EXPERIMENT}.json",
        f"reports/pictures/{EXPERIMENT}/0-dataset.png",
        "reports/datasets/ixi.png",
        "data/prepared/ixi/dataset.json",
        "dvc.lock",
        "mlflow.db",
    ):
        assert (repository.folder / name).is_file(), name
    assert list((repository.folder / f"reports/pictures/{EXPERIMENT}").glob("*.png"))


def test_second_repro_has_nothing_to_do_in_ten_seconds(repository: Repository) -> None:
    start = time.perf_counter()
    output = repository.run("dvc", "repro").stdout
    assert time.perf_counter() - start < 10
    assert "Running stage" not in output


def test_fid_is_in_the_json_in_dvc_metrics_and_in_the_mlflow_run(repository: Repository) -> None:
    metrics = repository.json(f"reports/metrics/{EXPERIMENT}.json")
    shown = json.loads(repository.run("dvc", "metrics", "show", "--json").stdout)[""]["data"]
    shown = shown[f"reports/metrics/{EXPERIMENT}.json"]["data"]
    run = mlflow_run(repository)
    for axis in range(3):
        name = f"fid/axis{axis}"
        assert np.isfinite(metrics[name])
        assert shown[name] == metrics[name]
        assert run["data"]["metrics"][name] == pytest.approx(metrics[name])
    from equisynth.files import sha256

    weights = sha256(repository.folder / "weights" / "fid_inception.pth")
    assert weights in json.dumps(repository.json(f"reports/evaluation/{EXPERIMENT}.json"))
    assert weights in json.dumps(run["data"])


def test_run_holds_parameters_curves_dataset_commit_and_pictures(repository: Repository) -> None:
    run = mlflow_run(repository)
    parameters, metrics, tags = (run["data"][key] for key in ("params", "metrics", "tags"))
    assert parameters["loss.commutation"] == "1.0"
    assert {"test/mae", "test/ssim", "validate/mae", "validation/selection"} <= set(metrics)
    commit = repository.run("git", "rev-parse", "HEAD").stdout.strip()
    assert commit in tags.values()
    lock = yaml.safe_load((repository.folder / "dvc.lock").read_text())
    assert lock["stages"]["prepare@ixi"]["outs"][0]["md5"] in tags.values()
    assert any(name.endswith(".png") for name in run["artifacts"])


def test_metrics_have_a_place_for_every_published_measure(repository: Repository) -> None:
    metrics = repository.json(f"reports/metrics/{EXPERIMENT}.json")
    for split in ("test", "validate"):
        assert {"mae", "mse", "psnr", "ssim", "nmi"} <= set(metrics[split])


def test_model_is_pulled_by_name_and_keeps_the_geometry(repository: Repository, tmp_path: Path) -> None:
    case = repository.json("data/prepared/ixi/dataset.json")["splits"]["test"][0]
    prepared = nibabel.load(repository.folder / f"data/prepared/ixi/cases/{case}/input.nii")
    affine = prepared.affine.copy()
    affine[:3, :3] = affine[:3, :3] @ _rotation(0.3)
    affine[:3, 3] = (10.0, -20.0, 30.0)
    image = nibabel.Nifti1Image(np.asarray(prepared.dataobj), affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=2)
    nibabel.save(image, tmp_path / "in.nii.gz")
    command = ("equisynth", "predict", str(tmp_path / "in.nii.gz"), "--output", str(tmp_path / "out.nii.gz"))
    repository.run(*command, "--prepared", "--model", "models:/ixi@champion")
    result = nibabel.load(tmp_path / "out.nii.gz")
    assert result.shape == image.shape
    assert result.header["qform_code"] == 1
    assert result.header["sform_code"] == 2
    np.testing.assert_allclose(result.affine, image.affine, atol=1e-5)
    np.testing.assert_allclose(result.header.get_zooms(), image.header.get_zooms(), rtol=1e-6)
    assert np.isfinite(result.get_fdata()).all()
    stage = nibabel.load(repository.folder / f"predictions/{EXPERIMENT}/test/{case}.nii").get_fdata()
    np.testing.assert_allclose(result.get_fdata(), stage, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("models:/nobody@champion", "nobody"),
        ("models:/ixi@nobody", "nobody"),
        ("models:/ixi/99", "99"),
        ("nowhere", "no such folder"),
    ],
)
def test_wrong_model_names_end_in_one_line(repository: Repository, tmp_path: Path, model: str, message: str) -> None:
    nibabel.save(nibabel.Nifti1Image(np.zeros((20, 20, 20), np.float32), np.eye(4)), tmp_path / "in.nii")
    command = ("equisynth", "predict", str(tmp_path / "in.nii"), "--output", str(tmp_path / "out.nii"))
    error = repository.run(*command, "--model", model, expect=2).stderr
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.nii").exists()


def test_only_stages_that_use_what_changed_run_again(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    # The program that is installed lists its own files: here it has to be the repository's.
    monkeypatch.setitem(repository.environment, "PYTHONPATH", str(repository.folder / "src"))

    def edited(name: str) -> set[str]:
        path = repository.folder / name
        text = path.read_text(encoding="utf-8")
        path.write_text(text + "\n# changed\n", encoding="utf-8")
        try:
            repository.run("dvc", "repro", "-q", "code")
            return {stage.split("@")[0] for stage in repository.changed()}
        finally:
            path.write_text(text, encoding="utf-8")
            repository.run("dvc", "repro", "-q", "code")

    assert edited("src/equisynth/report.py") == {"report"}
    assert "train" not in edited("src/equisynth/methods/supervised.py")
    assert "train" in edited("src/equisynth/methods/equivariant.py")
    assert "prepare" not in edited("src/equisynth/training.py")
    text = (repository.folder / "params.yaml").read_text()
    repository.parameters({"methods": {"eqsim_com_eqadv": {"loss": {"commutation": 0.5}}}})
    try:
        changed = {stage.split("@")[0] for stage in repository.changed()}
        assert "train" in changed
        assert not {"raw", "prepare"} & changed
    finally:
        (repository.folder / "params.yaml").write_text(text)


def mlflow_run(repository: Repository) -> dict[str, Any]:
    """The training's run, read by another process that stands in the repository and sets nothing."""
    code = (
        "import json, mlflow, sys\n"
        "client = mlflow.MlflowClient()\n"
        "ids = [e.experiment_id for e in client.search_experiments()]\n"
        'query = "tags.`equisynth.experiment` = \'" + sys.argv[1] + "\'"\n'
        "runs = client.search_runs(ids, filter_string=query)\n"
        "assert len(runs) == 1, len(runs)\n"
        "def walk(path=None):\n"
        "    for item in client.list_artifacts(runs[0].info.run_id, path):\n"
        "        yield from walk(item.path) if item.is_dir else [item.path]\n"
        "print('RUN' + json.dumps({'data': runs[0].data.to_dictionary(), 'artifacts': list(walk())}))\n"
    )
    lines = repository.run(sys.executable, "-c", code, EXPERIMENT).stdout.splitlines()
    return dict(json.loads(next(line for line in lines if line.startswith("RUN"))[3:]))


def _rotation(angle: float) -> np.ndarray:
    """About the last axis."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
