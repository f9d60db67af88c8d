"""The loop, with a method and samples made here: it must know nothing but the interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import small_trainings
from equisynth.config import Settings
from equisynth.errors import Diverged, UserError
from equisynth.methods.base import SELECTION, Batch, Method, Update
from equisynth.model import read_weights, save_weights
from equisynth.training import KEPT_EPOCHS, STATE, Trainer


def settings(epochs: int = 3, **changes: object) -> Settings:
    intensity = {"modality": "A", "signal_range": 1.0, "unit": "none"}
    fields: dict[str, object] = {
        "experiment": "toy", "scale": "demo", "dataset": "toy", "method": "toy",
        "data": {"n_dims": 2, "voxel_size": [1, 1], "input": intensity, "label": intensity, "licence": "none"},
        "trains_on_label": "deformed", "batch_size": 2, "patch_size": [8, 8], "random_transformation": {},
        "features": {"i2i": [16, 16]}, "epochs": epochs, "learning_rate": {"generator": 0.01}, "loss": {},
    }  # fmt: skip
    return Settings.model_validate({**fields, **changes})


class ToyMethod(Method):
    """Two convolutions, two optimisers, one draws; ``poison_after`` makes the loss infinite after so many calls."""

    def __init__(self, settings: Settings, poison_after: int | None = None) -> None:
        super().__init__(settings)
        torch.manual_seed(settings.seed)
        self.networks = {
            "i2i": self.predictor(settings),
            "other": nn.Sequential(nn.Dropout(0.1), nn.Conv2d(1, 1, 3, padding=1)),
        }
        self.optimisers = {
            name: torch.optim.Adam(network.parameters(), lr=0.01) for name, network in self.networks.items()
        }
        self.calls, self.poison_after = 0, poison_after
        self.validation_curve: list[float] | None = None

    @staticmethod
    def predictor(settings: Settings) -> nn.Module:
        return nn.Conv2d(1, 1, 3, padding=1)

    def updates(self, batch: Batch) -> Iterator[Update]:
        self.calls += 1
        for name in ("other", "i2i"):
            loss = (self.networks[name](batch.input.values) - batch.label.values).square().mean()
            if self.poison_after is not None and self.calls > self.poison_after:
                loss = loss * torch.inf
            yield Update(name, loss, {name: loss.detach()})

    def validation(self, batch: Batch) -> dict[str, Tensor]:
        if self.validation_curve is not None:
            return {SELECTION: torch.tensor(self.validation_curve.pop(0))}
        return {SELECTION: (self.networks["i2i"](batch.input.values) - batch.label.values).abs().mean()}


class ToySamples:
    def __init__(self, count: int = 6) -> None:
        self.count, self.epoch = count, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index >= self.count:
            raise IndexError(index)
        state = np.random.RandomState([self.epoch, index])
        image = torch.from_numpy(state.randn(1, 8, 8).astype(np.float32))
        mask = torch.ones(1, 8, 8)
        return {"input": image, "input_mask": mask, "label": 2 * image, "label_mask": mask,
                "random_affine": torch.eye(3, dtype=torch.float64)}  # fmt: skip


def trainer(folder: Path, epochs: int = 3, **options: object) -> Trainer:
    chosen = settings(epochs)
    return Trainer(ToyMethod(chosen, **options), chosen, ToySamples(), ToySamples(2), folder)  # type: ignore[arg-type]


def test_loss_falls_and_records_are_complete(tmp_path: Path) -> None:
    state = trainer(tmp_path, epochs=12).fit()
    assert [record["epoch"] for record in state.history] == list(range(1, 13))
    assert set(state.history[0]) == {"epoch", "train/i2i", "train/other", "validation/selection"}
    assert state.history[-1]["train/i2i"] < 0.7 * state.history[0]["train/i2i"]


def test_resumed_training_equals_an_undisturbed_one_to_the_last_bit(tmp_path: Path) -> None:
    undisturbed = trainer(tmp_path / "a", epochs=5)
    undisturbed.fit()

    class Killed(Exception):
        pass

    def kill(record: dict[str, float], seconds: float) -> None:
        if record["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        trainer(tmp_path / "b", epochs=5).fit(kill)
    resumed = trainer(tmp_path / "b", epochs=5)
    assert resumed.state.epoch == 2
    resumed.fit()
    assert resumed.state.history == undisturbed.state.history
    for name, value in undisturbed.weights_of(5).items():
        assert torch.equal(value, resumed.weights_of(5)[name]), name


def assert_same_end(first: Path, second: Path) -> None:
    """Two trainings ended in the same weights, optimisers and history, to the last bit."""
    one, other = (torch.load(folder / STATE, weights_only=True) for folder in (first, second))
    assert one["history"] == other["history"]
    for name, optimiser in one["optimisers"].items():
        torch.testing.assert_close(optimiser["state"], other["optimisers"][name]["state"], rtol=0, atol=0)
    names = sorted(path.name for path in first.glob("epoch_*"))
    assert names == sorted(path.name for path in second.glob("epoch_*"))
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.parametrize("case", ["equivariant 2D", "supervised"])
def test_methods_resume_to_the_last_bit(tmp_path: Path, case: str) -> None:
    """With optimisers, the vectors of spectral norms and the history."""
    undisturbed = small_trainings.trainer(case, tmp_path / "a", epochs=2)
    undisturbed.fit()
    small_trainings.trainer(case, tmp_path / "b", epochs=1).fit()
    torch.rand(3)
    resumed = small_trainings.trainer(case, tmp_path / "b", epochs=2)
    assert resumed.state.epoch == 1
    resumed.fit()
    assert any(name.endswith("._u") for name in resumed.weights_of(2))
    assert_same_end(tmp_path / "a", tmp_path / "b")


def killed(content: object, path: Path) -> None:
    raise KeyboardInterrupt


def test_a_kill_between_weights_and_state_repeats_one_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer(tmp_path / "a", epochs=3).fit()
    trainer(tmp_path / "b", epochs=2).fit()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            trainer(tmp_path / "b", epochs=3).fit()
    assert (tmp_path / "b" / "epoch_0003.safetensors").exists()
    resumed = trainer(tmp_path / "b", epochs=3)
    assert resumed.state.epoch == 2
    resumed.fit()
    assert_same_end(tmp_path / "a", tmp_path / "b")


def _list_as_state(folder: Path) -> None:
    torch.save([1, 2], folder / STATE)


def _other_shape(folder: Path) -> None:
    weights = read_weights(folder / "epoch_0002.safetensors")
    save_weights(folder / "epoch_0002.safetensors", weights | {"i2i.weight": torch.zeros(2, 1, 3, 3)})


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated state": lambda folder: (folder / STATE).write_bytes((folder / STATE).read_bytes()[:-100]),
    "empty state": lambda folder: (folder / STATE).write_bytes(b""),
    "text as state": lambda folder: (folder / STATE).write_text("state"),
    "state of another kind": _list_as_state,
    "no weights": lambda folder: (folder / "epoch_0002.safetensors").unlink(),
    "truncated weights": lambda folder: (folder / "epoch_0002.safetensors").write_bytes(b"\x00" * 20),
    "weights of another shape": _other_shape,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_told_in_one_line(tmp_path: Path, damage: str) -> None:
    trainer(tmp_path, epochs=2).fit()
    DAMAGES[damage](tmp_path)
    with pytest.raises(UserError, match="cannot be continued") as caught:
        trainer(tmp_path, epochs=3)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / STATE}: ")
    assert f"delete the folder {tmp_path} to start" in message
    assert "\n" not in message


def test_samples_of_an_epoch_differ_from_those_of_the_next(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Watching(ToyMethod):
        def updates(self, batch: Batch) -> Iterator[Update]:
            seen.append(batch.input.values.clone())
            yield from super().updates(batch)

    chosen = settings(2)
    Trainer(Watching(chosen), chosen, ToySamples(2), ToySamples(2), tmp_path).fit()
    assert len(seen) == 2
    assert not torch.equal(seen[0], seen[1])


def test_best_epoch_is_sought_among_the_last_six_only(tmp_path: Path) -> None:
    running = trainer(tmp_path, epochs=8)
    assert isinstance(running.method, ToyMethod)
    running.method.validation_curve = [0.1, 0.2, 0.9, 0.8, 0.3, 0.7, 0.6, 0.5]
    running.fit()
    assert running.best_epoch() == 5
    kept = sorted(path.name for path in tmp_path.glob("epoch_*"))
    assert len(kept) == KEPT_EPOCHS
    assert kept[0] == "epoch_0003.safetensors"


def test_infinite_loss_stops_with_one_line_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"training diverged: .*i2i.* not finite in epoch 2.*epoch 1 is kept") as caught:
        trainer(tmp_path, poison_after=3).fit()
    assert "\n" not in str(caught.value)
    assert trainer(tmp_path).state.epoch == 1


def test_weights_that_only_the_last_step_spoils_are_never_a_checkpoint(tmp_path: Path) -> None:
    class Spoiling(ToyMethod):
        def updates(self, batch: Batch) -> Iterator[Update]:
            yield from super().updates(batch)
            if self.calls == 6:  # the last step of the second epoch: a finite loss, a gradient that is none
                yield Update("other", (0 * self.networks["other"](batch.input.values).sum()).sqrt(), {})

    chosen = settings(3)
    spoiled = Trainer(Spoiling(chosen), chosen, ToySamples(), ToySamples(2), tmp_path)
    with pytest.raises(Diverged, match=r"weights of other not finite in epoch 2, last step; .* epoch 1 is kept"):
        spoiled.fit()
    assert trainer(tmp_path).state.epoch == 1


def test_epoch_smaller_than_a_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size is 2, but an epoch has only 1"):
        Trainer(ToyMethod(settings()), settings(), ToySamples(1), ToySamples(1), tmp_path)
