"""Models on disk: written whole, read safely, refused with one line when damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from equisynth.description import FORMAT, Description, write_description
from equisynth.errors import UserError
from equisynth.methods.base import build_method
from equisynth.model import load_model, network_states, save_weights
from test_training import settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    chosen = settings(method="supervised", loss={"similarity_weight": 1.0})
    method = build_method(chosen)
    save_weights(tmp_path / "model.safetensors", network_states(method.networks))
    description = Description(format=FORMAT, settings=chosen, preparation={"a": 1}, best_epoch=3, selection=0.5)
    write_description(tmp_path, description)
    return tmp_path


def test_loaded_model_predicts_as_the_one_saved(folder: Path) -> None:
    method = build_method(settings(method="supervised", loss={"similarity_weight": 1.0}))
    method.train(False)
    values = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        expected = method.networks["i2i"](values)
    model = load_model(folder, "cpu")
    torch.testing.assert_close(model.predict(values), expected)
    assert model.description.best_epoch == 3
    assert not model.network.training


def test_initial_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = network_states(build_method(settings(method="supervised", loss={"similarity_weight": 1.0})).networks)
    torch.manual_seed(2)
    second = network_states(build_method(settings(method="supervised", loss={"similarity_weight": 1.0})).networks)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("damage", ["truncate", "text", "other", "absent", "format", "field", "no json"])
def test_damaged_models_are_refused_with_one_line(folder: Path, damage: str) -> None:
    weights, description = folder / "model.safetensors", folder / "model.json"
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "text":
        weights.write_text("not a model")
    elif damage == "other":
        save_weights(weights, {"i2i.x": torch.zeros(1)})
    elif damage == "absent":
        weights.unlink()
    elif damage == "no json":
        description.write_text("{")
    else:
        content = json.loads(description.read_text())
        content |= {"format": 99} if damage == "format" else {"best_epoch": "first"}
        description.write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        load_model(folder, "cpu")
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_pickle_is_never_opened(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return eval, ("1/0",)

    torch.save(Bomb(), folder / "model.safetensors")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        load_model(folder, "cpu")
