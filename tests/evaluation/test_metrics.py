"""Metrics: golden numbers, closed forms, an independent implementation, and what degenerate images give."""

from __future__ import annotations

import math
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from skimage.metrics import normalized_mutual_information, structural_similarity

from equisynth.evaluation import metrics
from equisynth.evaluation.metrics import Pooled, errors, normalised_mutual_information, psnr, ssim
from golden_data import Golden, load

GOLDEN = load("09_metrics")


def names(prefix: str) -> list[str]:
    return [name for name in GOLDEN.children() if name.startswith(prefix)]


def pool(parts: Any) -> Pooled:
    return reduce(add, parts, Pooled())


def last(batch: np.ndarray) -> np.ndarray:
    """(C, *S) -> (*S, C)"""
    return np.moveaxis(batch, 0, -1)


@pytest.mark.parametrize("case", names("func_"))
def test_functions_golden(case: str) -> None:
    golden = GOLDEN / case
    samples = range(len(golden["label"]))
    label, output = ([last(golden[key][k]) for k in samples] for key in ("label", "output"))
    content, evaluation, tiny = (
        [golden[key][k, 0] for k in samples] for key in ("content_mask", "evaluation_mask", "nmi_tiny_mask")
    )
    data_range = float(golden["data_range"])
    found = pool(ssim(label[k], output[k], content[k], evaluation[k], data_range) for k in samples)
    golden.check("ssim_sum", found.total)
    golden.check("ssim_mass", found.mass)
    both = [content[k] * evaluation[k] for k in samples]
    for key, masks in (("nmi", both), ("nmi_tiny", tiny)):
        found = pool(normalised_mutual_information(label[k], output[k], masks[k]) for k in samples)
        golden.check(f"{key}_sum", found.total)
        golden.check(f"{key}_mass", found.mass)


def test_psnr_golden() -> None:
    golden = GOLDEN / "psnr"
    found = [psnr(Pooled(total, mass), top) for total, mass, top in golden["square_sum_mass_max"]]
    golden.check("value", found)


@pytest.mark.parametrize("name", names("full_volume"))
def test_full_volume_golden(name: str) -> None:
    golden = GOLDEN / name
    signal_range = float(golden["label_signal_range"])
    pooled: dict[str, list[Pooled]] = {"MAE": [], "MSE": [], "SSIM": [], "NMI": []}
    for key in golden.children():
        if not key.startswith("case"):
            continue
        case = golden / key
        label, prediction = case["label_aligned"], case["prediction"]
        content = case["input_mask"] * case["label_aligned_mask"]
        evaluation = case["evaluation_mask"]
        absolute, squared = errors(label, prediction, content * evaluation)
        found = {
            "MAE": absolute,
            "MSE": squared,
            "SSIM": ssim(label, prediction, content, evaluation, signal_range),
            "NMI": normalised_mutual_information(case["input"], prediction, content * evaluation),
        }
        for metric, value in found.items():
            case.check(f"metric_{metric}", value.mean)
            pooled[metric].append(value)
        case.check("metric_PSNR", psnr(squared, signal_range))
    for metric, values in pooled.items():
        (golden / "total").check(metric, pool(values).mean)
    (golden / "total").check("PSNR", psnr(pool(pooled["MSE"]), signal_range))


def denormalised(batch: Golden, key: str, mask: str, mean_and_std: list[list[float]]) -> np.ndarray:
    """(B, C, *S) in raw units, zero where invalid."""
    mean, std = (np.float32(v).reshape(-1, *(1,) * (batch[key].ndim - 2)) for v in mean_and_std)
    return (batch[key] * std + mean) * batch[mask]


@pytest.mark.parametrize("name", names("model_output"))
def test_model_output_golden(name: str) -> None:
    golden = GOLDEN / name
    normalization = (GOLDEN / names("model_output")[0]).json("normalization_json")
    of_input, of_label = normalization["input_mean_and_std"], normalization["label_mean_and_std"]
    signal_range = normalization["label_signal_range"]
    pooled: dict[str, list[Pooled]] = {}
    for key in golden.children():
        if not key.startswith("batch"):
            continue
        batch = golden / key
        source = denormalised(batch, "input", "input_mask", of_input)
        aligned = denormalised(batch, "aligned_label", "aligned_label_mask", of_label)
        training = denormalised(batch, "training_label", "training_label_mask", of_label)
        prediction = denormalised(batch, "prediction", "input_mask", of_label)
        for k in range(len(source)):
            if "full_patch" in name and not np.all(batch["input_mask"][k] > 0):
                continue
            keys = [key for key in batch.keys() if key.endswith("_mask")]
            masks = {mask: batch[mask][k, 0] for mask in keys}
            content = masks["input_mask"] * masks["aligned_label_mask"]
            comparison = content * masks["patch_mask"] * masks["evaluation_mask"]
            shown = last(prediction[k])
            for suffix, label, inside, weight in (
                ("", last(aligned[k]), content, comparison),
                ("_training", last(training[k]), *[masks["input_mask"] * masks["training_label_mask"]] * 2),
            ):
                absolute, squared = errors(label, shown, weight)
                found = {"MAE": absolute, "MSE": squared, "SSIM": ssim(label, shown, inside, weight, signal_range)}
                if not suffix:
                    found["NMI"] = normalised_mutual_information(last(source[k]), shown, weight)
                for metric, value in found.items():
                    pooled.setdefault(metric + suffix, []).append(value)
    ending = "_full_patch" if "full_patch" in name else ""
    total = golden / "total"
    for metric, values in pooled.items():
        total.check(metric + ending, pool(values).mean)
    for suffix in ("", "_training"):
        total.check(f"PSNR{suffix}{ending}", psnr(pool(pooled[f"MSE{suffix}"]), signal_range))


@pytest.fixture
def volumes() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    state = np.random.RandomState(0)
    label = state.rand(20, 23, 18)
    prediction = 0.7 * label + 0.3 * state.rand(20, 23, 18)
    mask = np.ones((20, 23, 18))
    mask[:4, :, 12:] = 0
    return label, prediction, mask


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("slab", [500, 10**9])
def test_ssim_and_nmi_agree_with_scikit_image(volumes: Any, order: str, slab: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(metrics, "SLAB_VOXELS", slab)
    label, prediction, mask = (np.asarray(array, order=order) for array in volumes)
    for a, b, m in ((label, prediction, mask), (label[..., 5], prediction[..., 5], mask[..., 5])):
        _, expected = structural_similarity(a, b, win_size=7, data_range=2.0, full=True)
        inside = binary_erosion(m > 0, np.ones((3,) * m.ndim), iterations=3)
        assert ssim(a, b, m, m, 2.0).mean == pytest.approx(expected[inside].mean(), abs=1e-6)
        bins = max(2, int(math.sqrt(m.sum() / 5)))
        expected_nmi = normalized_mutual_information(a[m > 0], b[m > 0], bins=bins)
        assert normalised_mutual_information(a, b, m).mean == pytest.approx(expected_nmi, abs=1e-6)


def test_errors_closed_form() -> None:
    label, prediction = np.zeros((4, 5, 2), np.float32), np.zeros((4, 5, 2), np.float32)
    prediction[..., 0], prediction[..., 1] = 1, 3
    mask = np.zeros((4, 5))
    mask[1:3] = 1
    prediction[mask == 0] = 1e6
    absolute, squared = errors(label, prediction, mask)
    assert (absolute.mean, absolute.mass, squared.mean) == (2, 10, 5)
    assert psnr(squared, 10) == pytest.approx(20 - 10 * math.log10(5))


def test_pooling_weighs_by_mass() -> None:
    assert (Pooled(2, 1) + Pooled(4, 3)).mean == 1.5


def test_identical_images() -> None:
    image = np.random.RandomState(1).rand(16, 16, 16).astype(np.float32)
    ones = np.ones(image.shape)
    absolute, squared = errors(image, image, ones)
    assert absolute.mean == 0
    assert psnr(squared, 1.0) == math.inf
    assert ssim(image, image, ones, ones, 1.0).mean == pytest.approx(1)
    assert normalised_mutual_information(image, image, ones).mean == pytest.approx(2)


def test_an_empty_mask_measures_nothing() -> None:
    image = np.random.RandomState(1).rand(16, 16, 16).astype(np.float32)
    none = np.zeros(image.shape)
    absolute, squared = errors(image, image + 1, none)
    assert all(math.isnan(value) for value in (absolute.mean, psnr(squared, 1.0)))
    assert math.isnan(ssim(image, image, none, none, 1.0).mean)
    assert normalised_mutual_information(image, image, none) == Pooled()


def test_a_case_without_information_does_not_weigh() -> None:
    constant = np.full((16, 16), 3.0, np.float32)
    ones = np.ones((16, 16))
    assert normalised_mutual_information(constant, constant, ones) == Pooled()
    assert normalised_mutual_information(constant, np.random.RandomState(0).rand(16, 16), ones).mass == 256


def test_an_image_smaller_than_the_window_has_no_ssim() -> None:
    image = np.ones((5, 16, 16), np.float32)
    assert ssim(image, image, image, image, 1.0) == Pooled()


def test_images_on_different_grids_are_refused() -> None:
    with pytest.raises(ValueError, match="one grid"):
        errors(np.zeros((4, 4)), np.zeros((4, 5)), np.zeros((4, 4)))
    with pytest.raises(ValueError, match="channels"):
        errors(np.zeros((4, 4, 3)), np.zeros((4, 4)), np.zeros((4, 4)))


# --- closed forms and independent libraries


def test_ssim_of_a_shift_in_brightness_in_closed_form() -> None:
    """The structure is the same: what is left is (2ab + c1) / (a² + b² + c1) of the two means."""
    a, b, ones = np.full((9, 9, 9), 3.0), np.full((9, 9, 9), 5.0), np.ones((9, 9, 9))
    c1 = (0.01 * 10) ** 2
    assert ssim(a, b, ones, ones, 10.0) == Pooled(pytest.approx(27 * (30 + c1) / (34 + c1)), 27)  # type: ignore[arg-type]


def test_ssim_of_the_negative_in_closed_form() -> None:
    """One window: equal variances v, covariance -v, means m and -m."""
    a = np.random.RandomState(0).rand(7, 7)
    ones, m, v, c1, c2 = np.ones((7, 7)), a.mean(), a.var(ddof=1), 0.01**2, 0.03**2
    expected = (-2 * m * m + c1) * (-2 * v + c2) / ((2 * m * m + c1) * (2 * v + c2))
    assert ssim(a, -a, ones, ones, 1.0) == Pooled(pytest.approx(expected), 1)  # type: ignore[arg-type]


@pytest.mark.parametrize("bins", [2, 5])
def test_nmi_agrees_with_scikit_learn(bins: int) -> None:
    """Of a histogram with a bin per value: H(a) + H(b) over H(a, b) from its mutual information."""
    from sklearn.metrics import mutual_info_score

    state = np.random.RandomState(bins)
    count = 5 * bins**2  # voxels that give so many bins
    a = state.randint(0, bins, count)
    b = np.where(state.rand(count) < 0.6, a, state.randint(0, bins, count))
    a[:bins] = b[:bins] = np.arange(bins)  # the whole range occurs
    information, of_a, of_b = (mutual_info_score(*pair) for pair in ((a, b), (a, a), (b, b)))
    found = normalised_mutual_information(a.astype(float)[:, None], b.astype(float)[:, None], np.ones((count, 1)))
    assert found.mean == pytest.approx((of_a + of_b) / (of_a + of_b - information), rel=1e-12)
    assert found.mass == count


def test_nmi_of_independent_values_is_one() -> None:
    a, b = (part.ravel()[:, None].astype(float) for part in np.meshgrid(np.arange(2), np.arange(2)))
    a, b = np.tile(a, (5, 1)), np.tile(b, (5, 1))  # 20 voxels: two bins
    assert normalised_mutual_information(a, b, np.ones(a.shape)).mean == pytest.approx(1)


@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_psnr_and_errors_agree_with_scikit_image(volumes: Any, data_range: float) -> None:
    from skimage.metrics import mean_squared_error, peak_signal_noise_ratio

    label, prediction, mask = volumes
    label, prediction, inside = label * data_range, prediction * data_range, mask > 0
    absolute, squared = errors(label, prediction, mask)
    assert squared.mean == pytest.approx(mean_squared_error(label[inside], prediction[inside]))
    assert absolute.mean == pytest.approx(np.abs(label - prediction)[inside].mean())
    expected = peak_signal_noise_ratio(label[inside], prediction[inside], data_range=data_range)
    assert psnr(squared, data_range) == pytest.approx(expected)


def test_windows_are_those_of_scipy_s_erosion(volumes: Any) -> None:
    """Any mask: a voxel counts where its window lies whole in image and mask, with the evaluation mask as weight."""
    label, prediction, _ = volumes
    state = np.random.RandomState(4)
    content = (state.rand(*label.shape) < 0.999).astype(np.uint8)
    weight = state.rand(*label.shape)
    _, expected = structural_similarity(label, prediction, win_size=7, data_range=1.0, full=True)
    inside = binary_erosion(content, np.ones((7, 7, 7)), border_value=0)
    assert 0 < inside.sum() < inside.size / 2
    found = ssim(label, prediction, content, weight, 1.0)
    assert found.mass == pytest.approx((weight * inside).sum())
    assert found.mean == pytest.approx((expected * weight * inside).sum() / (weight * inside).sum(), abs=1e-9)


# --- degenerate images


ODD = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("place", [(2, 2, 13), (0, 0, 12), (3, 22, 17)])
def test_what_lies_outside_of_the_mask_does_not_count(volumes: Any, odd: float, place: tuple[int, ...]) -> None:
    label, prediction, mask = volumes
    spoilt = prediction.copy()
    spoilt[place] = odd
    assert mask[place] == 0
    assert errors(label, spoilt, mask) == errors(label, prediction, mask)
    assert ssim(label, spoilt, mask, mask, 1.0) == ssim(label, prediction, mask, mask, 1.0)
    expected = normalised_mutual_information(label, prediction, mask)
    assert normalised_mutual_information(label, spoilt, mask) == expected


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("place", [(0, 0, 0), (10, 10, 10), (19, 22, 17)])
@pytest.mark.parametrize("slab", [500, 10**9])
def test_no_number_comes_of_a_value_that_is_not_finite(
    volumes: Any, odd: float, place: tuple[int, ...], slab: int, monkeypatch: Any
) -> None:
    monkeypatch.setattr(metrics, "SLAB_VOXELS", slab)
    label, prediction, mask = volumes
    prediction = prediction.copy()
    prediction[place] = odd
    absolute, squared = errors(label, prediction, mask)
    assert not any(math.isfinite(value) for value in (absolute.mean, squared.mean, psnr(squared, 1.0)))
    assert math.isnan(ssim(label, prediction, mask, mask, 1.0).mean)
    assert math.isnan(ssim(prediction, label, mask, mask, 1.0).mean)
    assert math.isnan(normalised_mutual_information(label, prediction, mask).mean)
    assert math.isnan((normalised_mutual_information(label, prediction, mask) + Pooled(1, 1)).mean)


def test_one_voxel() -> None:
    label, prediction = np.full((1, 1, 1), 2.0), np.full((1, 1, 1), 5.0)
    ones = np.ones((1, 1, 1))
    absolute, squared = errors(label, prediction, ones)
    assert (absolute, squared) == (Pooled(3, 1), Pooled(9, 1))
    assert psnr(squared, 3.0) == pytest.approx(0)
    assert ssim(label, prediction, ones, ones, 1.0) == Pooled()
    assert normalised_mutual_information(label, prediction, ones) == Pooled()
    mask = np.zeros((16, 16))
    mask[8, 8] = 1
    image = np.random.RandomState(0).rand(16, 16)
    assert errors(image, image + 1, mask)[0].mean == pytest.approx(1)
    assert ssim(image, image, mask, mask, 1.0) == Pooled()
    assert normalised_mutual_information(image, image, mask) == Pooled()


def test_constant_images() -> None:
    one, two, ones = np.full((16, 16), 1.0), np.full((16, 16), 2.0), np.ones((16, 16))
    assert ssim(one, one, ones, ones, 1.0).mean == pytest.approx(1)
    assert 0 < ssim(one, two, ones, ones, 1.0).mean < 1
    assert errors(one, two, ones)[1].mean == 1
    assert normalised_mutual_information(one, two, ones) == Pooled()
    noise = np.random.RandomState(0).rand(16, 16)
    assert normalised_mutual_information(one, noise, ones).mean == pytest.approx(1)


def test_8_bit_images_do_not_wrap_around() -> None:
    low, high, ones = np.full((8, 8, 3), 10, np.uint8), np.full((8, 8, 3), 250, np.uint8), np.ones((8, 8))
    absolute, squared = errors(low, high, ones)
    assert (absolute.mean, squared.mean) == (240, 240**2)
    assert ssim(low, high, ones, ones, 255.0) == ssim(low.astype(float), high.astype(float), ones, ones, 255.0)
