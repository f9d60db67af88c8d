"""Half precision in the networks, single precision around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from equisynth import losses
from equisynth.errors import UserError
from equisynth.geometry import warping
from small_trainings import trainer


@pytest.fixture
def half() -> Iterator[str]:
    """A process trains in one precision; this one in another for a while."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield "bf16"
    AcceleratorState._reset_state(reset_partial_state=True)


def watched(function: Callable[..., Tensor], seen: list[tuple[str, torch.dtype, bool]]) -> Callable[..., Tensor]:
    """The function, and what it is given: dtypes, and whether autocast is on."""

    def watching(*arguments: Any, **options: Any) -> Tensor:
        tensors = [value for value in arguments if isinstance(value, Tensor)]
        seen.extend((function.__name__, tensor.dtype, torch.is_autocast_enabled("cpu")) for tensor in tensors)
        return function(*arguments, **options)

    return watching


@pytest.mark.parametrize("case", ["equivariant 2D", "equivariant 3D", "supervised"])
def test_networks_compute_in_half_and_geometry_and_losses_in_single_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: str, case: str
) -> None:
    outside: list[tuple[str, torch.dtype, bool]] = []
    for module, name in ((warping, "grid_sample"), (warping, "integrate_velocity"), (losses, "masked_error"),
                         (losses, "orthonormality"), (losses, "properness"), (losses, "affinity"),
                         (losses.F, "softplus")):  # fmt: skip
        monkeypatch.setattr(module, name, watched(getattr(module, name), outside))
    made = trainer(case, tmp_path, precision=half, epochs=1)
    within: set[tuple[str, torch.dtype]] = set()
    answers: set[tuple[str, torch.dtype]] = set()
    for name, network in made.method.networks.items():
        first = next(module for module in network.modules() if isinstance(module, (torch.nn.Conv2d, torch.nn.Conv3d)))
        first.register_forward_hook(lambda *given, name=name: within.add((name, given[2].dtype)))
        network.register_forward_hook(
            lambda *given, name=name: answers.update(
                (name, value.dtype) for value in (given[2] if isinstance(given[2], tuple) else (given[2],))
            )
        )
    history = made.fit().history
    names = set(made.method.networks)
    assert within == {(name, torch.bfloat16) for name in names}
    assert answers == {(name, torch.float32) for name in names}
    functions = {name for name, _, _ in outside}
    assert functions >= {"masked_error", "softplus"}
    assert {(dtype, autocast) for _, dtype, autocast in outside} == {(torch.float32, False)}
    assert functions >= {"grid_sample", "integrate_velocity", "affinity"} or case == "supervised"

    AcceleratorState._reset_state(reset_partial_state=True)
    expected = trainer(case, tmp_path / "single", epochs=1).fit().history
    assert history[0].keys() == expected[0].keys()
    assert history[0] != expected[0]
    for key, value in expected[0].items():
        assert history[0][key] == pytest.approx(value, rel=0.05, abs=0.02), key
    assert all(value.dtype == torch.float32 for value in made.weights_of(1).values())


@pytest.mark.parametrize(("precision", "message"), [("half", "found 'half', expected one of: no, bf16, fp16"),
                                                    ("fp16", "fp16 needs a GPU")])  # fmt: skip
def test_what_cannot_be_had_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=message):
        trainer("supervised", tmp_path, precision=precision)
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_half_precision_with_scaled_gradients_resumes(tmp_path: Path) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    whole = trainer("supervised", tmp_path / "a", precision="fp16", epochs=2).fit().history
    trainer("supervised", tmp_path / "b", precision="fp16", epochs=1).fit()
    resumed = trainer("supervised", tmp_path / "b", precision="fp16", epochs=2)
    assert resumed.accelerator.scaler.get_scale() > 1
    assert resumed.fit().history[1] == pytest.approx(whole[1], rel=1e-3)
    AcceleratorState._reset_state(reset_partial_state=True)
