"""The loop, with a method and samples made here: it must know nothing but the interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equisynth.config import Settings
from equisynth.errors import UserError
from equisynth.methods.base import SELECTION, Batch, Method, Update
from equisynth.training import KEPT_EPOCHS, Trainer


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
    """Two convolutions, two optimisers; ``poison`` makes the loss infinite in one epoch's worth of calls."""

    def __init__(self, settings: Settings, poison_after: int | None = None) -> None:
        super().__init__(settings)
        torch.manual_seed(settings.seed)
        self.networks = {"i2i": self.predictor(settings), "other": nn.Conv2d(1, 1, 3, padding=1)}
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
    with pytest.raises(UserError, match=r"training diverged: .*i2i.* not finite in epoch 2.*epoch 1 is kept") as caught:
        trainer(tmp_path, poison_after=3).fit()
    assert "\n" not in str(caught.value)
    assert trainer(tmp_path).state.epoch == 1


def test_epoch_smaller_than_a_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size is 2, but an epoch has only 1"):
        Trainer(ToyMethod(settings()), settings(), ToySamples(1), ToySamples(1), tmp_path)
