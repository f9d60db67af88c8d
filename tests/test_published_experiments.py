"""The 68 published experiments: composed here, they come to the published entries in every field."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from equisynth import cli, params
from equisynth.methods.base import method_class
from equisynth.published import published_entry

HERE = Path(__file__).parent
PUBLISHED: dict[str, Any] = yaml.safe_load((HERE / "data" / "published_experiments.yaml").read_text(encoding="utf-8"))
OURS = params.read(HERE.parent / "params.yaml")
# Two slips of the published configurations; the program does what the names say.
MENDED: dict[str, dict[str, Any]] = {
    "coco-sr_defsim_aug": {"label_deformation": PUBLISHED["coco-sr_defsim"]["label_deformation"]},
    "cermep-equivariance_translation_rotation_scale_shear": {
        "random_transformation": {"log_scale_std": 0.08, "log_shear_std": 0.08}
    },
}


def resolved(tree: params.Tree, name: str, scale: str) -> Any:
    return params.resolve(tree, name, scale, lambda method: method_class(method).Options)


def test_the_methods_name_exactly_the_published_experiments() -> None:
    assert len(PUBLISHED) == 68
    assert set(params.published(OURS)) == set(PUBLISHED)
    for name, (dataset, method) in params.published(OURS).items():
        assert name == f"{dataset}-{method}"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_experiments_resolve_to_their_published_entries(name: str) -> None:
    expected = params.merge(PUBLISHED[name], MENDED.get(name, {}))
    assert published_entry(resolved(OURS, name, "paper")) == expected


@pytest.mark.parametrize("name", MENDED)
def test_slips_differ_from_what_was_published(name: str) -> None:
    assert params.merge(PUBLISHED[name], MENDED[name]) != PUBLISHED[name]


def test_slips_are_what_their_names_say() -> None:
    deformation = MENDED["coco-sr_defsim_aug"]["label_deformation"]
    assert deformation["translation_range"] == {"lower": [-1.5, -1.5], "upper": [1.5, 1.5]}
    assert deformation["magnitude_range"] == {"lower": [-2.0, -2.0], "upper": [2.0, 2.0]}
    assert PUBLISHED["coco-sr_defsim_aug"]["label_deformation"] == PUBLISHED["coco-sc_defsim"]["label_deformation"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_experiments_resolve_at_demo_scale_too(name: str) -> None:
    """Their methods take the options and the patches: checked without building the networks."""
    settings = resolved(OURS, name, "demo")
    method_class(settings.method).options(settings)
    assert settings.slices == (PUBLISHED[name]["patch_size"][-1] == 1)
    assert max(settings.patch_size) <= 96


def test_every_published_value_matters_to_the_comparison() -> None:
    """An entry with any one value changed no longer equals what the program composes."""
    name = "ixi-pix2pix"
    composed = published_entry(resolved(OURS, name, "paper"))
    for key, value in PUBLISHED[name].items():
        other = copy.deepcopy(PUBLISHED[name])
        other[key] = "changed" if not isinstance(value, dict) else {**value, next(iter(value)): "changed"}
        assert composed != other


@pytest.mark.parametrize("name", ["staining-reg_gan", "coco-lr_noreg_aug"])
def test_the_command_prints_the_published_shape(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(HERE.parent)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["resolve", name, "--scale", "paper", "--json"])
    assert not stopped.value.code
    assert json.loads(capsys.readouterr().out) == PUBLISHED[name]


def test_each_is_a_target_of_dvc_at_both_scales(tmp_path: Path) -> None:
    """DVC reads published/dvc.yaml as it is; what a training depends on names its own method, dataset and scale."""
    for name in ("dvc.yaml", "params.yaml", "published/dvc.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(HERE.parent / name, tmp_path / name)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n", encoding="utf-8")
    code = """
import json, sys
from pathlib import Path
from dvc.repo import Repo

found, text = {}, Path("params.yaml").read_text()
for scale in ("demo", "paper"):
    Path("params.yaml").write_text(text.replace("scale: demo ", f"scale: {scale} ", 1))
    repo = Repo()
    for file in ("dvc.yaml", "published/dvc.yaml"):
        for stage in repo.stage.load_all(file):
            if stage.name.startswith("train@"):
                keys = [key for dep in stage.deps if hasattr(dep, "params") for key in dep.params]
                found.setdefault(stage.name.removeprefix("train@"), {})[scale] = keys
print(json.dumps(found))
"""
    command = (sys.executable, "-c", code)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == set(PUBLISHED)
    assert set(found["ixi-pix2pix"]["paper"]) == {
        "scale", "seed", "methods.pix2pix", "datasets.ixi.data", "datasets.ixi.training", "datasets.ixi.slices",
        "scales.paper.ixi.data", "scales.paper.ixi.training", "scales.paper.ixi.slices",
    }  # fmt: skip
    for name, (dataset, method) in params.published(OURS).items():
        for scale in ("demo", "paper"):
            keys = found[name][scale]
            assert f"methods.{method}" in keys
            for key in keys:  # datasets.<dataset>[.part], scales.<scale>.<dataset>[.part]
                if key.startswith(("datasets.", "scales.")):
                    place = f"datasets.{dataset}" if key.startswith("datasets.") else f"scales.{scale}.{dataset}"
                    assert key == place or key.startswith(f"{place}."), (name, key)
