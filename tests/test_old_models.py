"""Models that earlier versions stored load and predict as they did; what cannot be read says why.

Each folder ``tests/data/models/VERSION`` was written by that version, by ``python scripts/model_fixture.py
tests/data/models/VERSION``, and never changes.
"""

from __future__ import annotations

import json
import re
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equisynth.description import FORMAT, read_description
from equisynth.errors import UserError
from equisynth.inference import translate_volume
from equisynth.model import load_model
from equisynth.trained_method import load_method

REPOSITORY = Path(__file__).parents[1]
STORED = REPOSITORY / "tests/data/models"
MODELS = sorted(path.parent.relative_to(STORED).as_posix() for path in STORED.glob("*/*/model.json"))


def test_this_version_is_stored() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    (version,) = re.findall(r'^version = "(\d+\.\d+)', text, re.MULTILINE)
    assert version in {name.partition("/")[0] for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_stored_models_predict_what_they_did(name: str) -> None:
    folder = STORED / name
    model = load_model(folder, "cpu")
    image, prediction = np.load(folder / "image.npy"), np.load(folder / "prediction.npy")
    scale = model.description.settings.data.label.std
    assert prediction.std() > 0.01 * np.mean(scale), "a model that says nothing proves nothing"
    found = translate_volume(model.predict, image, None, model.description)
    np.testing.assert_allclose(found / np.max(scale), prediction / np.max(scale), atol=1e-5, rtol=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of a stored model, to change."""
    return Path(shutil.copytree(STORED / MODELS[0], tmp_path / "model"))


def change(folder: Path, *keys: str, value: Any = None, remove: bool = False) -> None:
    content = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    if remove:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    (folder / "model.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    ("keys", "options", "words"),
    [
        (("format",), {"value": FORMAT + 1}, (f"format {FORMAT + 1}", f"reads format {FORMAT}", "update equisynth")),
        (("format",), {"remove": True}, ("format None", "again")),
        (("colour_space",), {"value": "lab"}, ("colour_space: unknown to this version", "update equisynth")),
        (("settings", "data", "spin"), {"value": 1}, ("settings.data.spin: unknown", "update equisynth")),
        (("settings", "patch_size"), {"remove": True}, ("settings.patch_size: is missing", "again")),
        (("best_epoch",), {"value": "last"}, ("best_epoch: ", "integer", "again")),
        (("settings", "method"), {"value": "diffusion"}, ("'diffusion'", "update equisynth")),
    ],
)
@pytest.mark.parametrize("load", [load_model, load_method])
def test_what_cannot_be_read_says_which_key_and_what_to_do(
    folder: Path,
    load: Callable[[Path, str], object],
    keys: tuple[str, ...],
    options: dict[str, Any],
    words: tuple[str, ...],
) -> None:
    change(folder, *keys, **options)
    with pytest.raises(UserError) as caught:
        load(folder, "cpu")
    message = str(caught.value)
    assert message.startswith(f"{folder / 'model.json'}: ")
    assert "\n" not in message
    for word in words:
        assert word in message


def test_the_script_writes_what_is_stored_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fixture of a version is no accident: its script makes models that load."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", ["model_fixture.py", str(tmp_path)])
    runpy.run_path(str(REPOSITORY / "scripts/model_fixture.py"), run_name="__main__")
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted({name.partition("/")[2] for name in MODELS})
    for name in written:
        assert read_description(tmp_path / name).format == FORMAT
        total = sum(path.stat().st_size for path in (tmp_path / name).iterdir())
        assert total < 200_000
