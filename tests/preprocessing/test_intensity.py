"""White matter becomes 1, whatever the scanner's gain; bias fields go."""

from __future__ import annotations

import numpy as np
import pytest

from equisynth.errors import UserError
from equisynth.preprocessing import intensity
from equisynth.preprocessing.body_mask import body_mask

SHAPE = (24, 26, 22)
T1, T2 = (0.25, 0.7, 1.0), (3.0, 1.5, 1.0)  # cerebrospinal fluid, grey matter, white matter


def tissues() -> np.ndarray:
    """0 outside, 1 fluid, 2 grey, 3 white: nested balls."""
    squares = sum((i - (n - 1) / 2) ** 2 for i, n in zip(np.indices(SHAPE), SHAPE, strict=True))
    return np.digitize(-np.sqrt(squares), [-10, -9, -7])


def image(contrast: tuple[float, ...], gain: float = 1.0, seed: int = 0) -> np.ndarray:
    noise = 0.02 * np.random.RandomState(seed).randn(*SHAPE)
    return (gain * (np.array((0.0, *contrast))[tissues()] + np.abs(noise))).astype(np.float32)


def test_white_matter_becomes_one_in_every_modality() -> None:
    brain = (tissues() > 0).astype(np.uint8)
    membership = intensity.white_matter_membership(image(T1, 400), brain)
    for contrast, gain in ((T1, 400.0), (T2, 90.0)):
        scan = image(contrast, gain, seed=1)
        normalised = scan / intensity.white_matter_mean(scan, membership)
        assert abs(normalised[tissues() == 3].mean() - 1) < 0.05


def test_clustering_is_repeatable_and_leaves_the_global_state_alone() -> None:
    brain = (tissues() > 0).astype(np.uint8)
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    first = intensity.white_matter_membership(image(T1), brain)
    assert np.array_equal(np.random.get_state()[1], before)
    np.random.seed(6)
    assert np.array_equal(intensity.white_matter_membership(image(T1), brain), first)


def test_an_empty_brain_is_an_error() -> None:
    with pytest.raises(UserError, match="no white matter"):
        intensity.white_matter_membership(image(T1), np.zeros(SHAPE, np.uint8))
    with pytest.raises(UserError, match="expected above 0"):
        intensity.white_matter_mean(np.zeros(SHAPE, np.float32), np.ones(SHAPE, np.float32))


@pytest.mark.parametrize("gain", [0.01, 1.0, 350.0])
def test_scale_without_t1_follows_the_gain(gain: float) -> None:
    body = body_mask(image(T2), closing=2)
    reference = intensity.body_quantiles(image(T2), body)
    scale, found = intensity.white_matter_mean_without_t1(image(T2, gain, seed=3), reference, closing=2)
    assert abs(scale / gain - 1) < 0.03
    assert (found != body).mean() < 0.01


def test_scale_of_a_large_scan_is_that_of_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins at half the resolution; that saves time and nothing else."""
    scan = np.kron(image(T2, 350.0, seed=3), np.ones((2, 2, 2), np.float32))
    reference = intensity.body_quantiles(image(T2), body_mask(image(T2), closing=2))
    monkeypatch.setattr(intensity, "LARGE", 1000)
    scale, body = intensity.white_matter_mean_without_t1(scan, reference, closing=4)
    monkeypatch.setattr(intensity, "LARGE", 10)
    seen: list[tuple[int, ...]] = []
    body_quantiles = intensity.body_quantiles

    def watched(normalised: np.ndarray, mask: np.ndarray) -> list[float]:
        seen.append(normalised.shape)
        return body_quantiles(normalised, mask)

    monkeypatch.setattr(intensity, "body_quantiles", watched)
    faster, found = intensity.white_matter_mean_without_t1(scan, reference, closing=4)
    assert abs(faster / scale - 1) < 5e-3
    assert (found != body).mean() < 1e-3
    assert len(seen) > 1
    assert seen.count(scan.shape) == 1


@pytest.mark.parametrize("gain", [1.0, 350.0])
def test_scale_without_t1_of_a_scan_filled_up_with_zeros(gain: float) -> None:
    reference = intensity.body_quantiles(image(T2), body_mask(image(T2), closing=2))
    padded = np.pad(image(T2, gain, seed=3), 20)
    assert (padded == 0).mean() > 0.9
    assert abs(intensity.white_matter_mean_without_t1(padded, reference, closing=2)[0] / gain - 1) < 0.03


def test_no_body() -> None:
    with pytest.raises(UserError, match="no body"):
        intensity.white_matter_mean_without_t1(np.zeros(SHAPE, np.float32), [0.1, 0.2, 0.3, 0.4, 0.5])


def test_bias_field_is_reduced() -> None:
    slope = np.linspace(-0.3, 0.3, SHAPE[0]).reshape(-1, 1, 1)
    biased = (image(T1) * np.exp(slope)).astype(np.float32)
    inside = (tissues() > 0).astype(np.uint8)
    corrected = intensity.without_bias_field(biased, inside, iterations=(20, 10))
    white = tissues() == 3
    assert corrected.dtype == np.float32
    assert corrected[white].std() / corrected[white].mean() < 0.6 * biased[white].std() / biased[white].mean()
