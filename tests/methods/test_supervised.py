"""Traditional training: golden trainings of all variants, and what no golden number says."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from equisynth.losses import masked_error
from equisynth.methods.base import SELECTION
from equisynth.methods.supervised import Supervised
from golden_data import load
from method_golden import Training, batch_of, close, load_states, settings_of, variants

CASES = variants("trad_", "traddisc_")


@pytest.mark.parametrize("file, dimensions, variant", CASES)
def test_training(file: str, dimensions: str, variant: str) -> None:
    golden = load(file) / dimensions
    record = golden / "train" / variant
    training = Training(Supervised(settings_of(record.json("config_json"), "supervised")), golden)
    training.check_all(record, validation="_aug" in variant)


@pytest.mark.parametrize("file, dimensions, variant", [case for case in CASES if "_aug" not in case[2]])
def test_validation_without_augmentation_uses_its_own_masks(file: str, dimensions: str, variant: str) -> None:
    """Known difference: the reference validates with the masks of the last training batch."""
    golden = load(file) / dimensions
    record = golden / "train" / variant
    method = Supervised(settings_of(record.json("config_json"), "supervised"))
    training = Training(method, golden)
    voxel_size = method.settings.data.voxel_size
    batch, last = batch_of(golden / "validation_batch0", voxel_size), batch_of(golden / "batch2", voxel_size)
    with torch.no_grad():
        output = method.networks["i2i"](batch.input.values)
        own, theirs = (
            float(masked_error(output, batch.label.values, source.input.comparison_mask(source.label)))
            for source in (batch, last)
        )
    assert training.selection == pytest.approx(own, rel=1e-6)
    close("validation", [theirs], record["validation_loss/sim"], record, "validation_loss/sim", 1e-3)


@pytest.mark.parametrize("augment", [True, False])
def test_the_random_transformation_matters_under_augmentation_only(augment: bool) -> None:
    file, dimensions, variant = CASES[0]
    golden = load(file) / dimensions
    settings = settings_of((golden / "train" / variant).json("config_json"), "supervised")
    method = Supervised(settings.model_copy(update={"augment_with_random_transformation": augment}))
    load_states(method, golden)
    batch = batch_of(golden / "batch0", settings.data.voxel_size)
    other = dataclasses.replace(batch, random=batch.random.inverse())
    with torch.no_grad():
        first, second = (float(method.validation(given)[SELECTION]) for given in (batch, other))
    assert (first != second) == augment
