"""Settings models: what a value on its own may be, in 2D and 3D."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from equisynth.config import LABEL_ROLES, ON_THE_FLY, Data, Intensity, RigidityCoefficient, Settings
from equisynth.published import published_entry

INTENSITY: dict[str, Any] = {"modality": "A", "signal_range": 1.0, "unit": "1"}


def settings(n_dims: int = 2, **changes: Any) -> Settings:
    """Small settings of an experiment with ``n_dims`` axes."""
    fields: dict[str, Any] = {
        "experiment": "toy", "scale": "demo", "dataset": "toy", "method": "equivariant",
        "data": {
            "n_dims": n_dims, "voxel_size": [1.0] * n_dims, "input": INTENSITY, "label": INTENSITY, "licence": "none",
        },
        "trains_on_label": "deformed", "batch_size": 2, "patch_size": [16] * n_dims, "random_transformation": {},
        "features": {"i2i": [4, 8]}, "normalization_groups": 4, "epochs": 1, "learning_rate": {"generator": 1e-3},
        "loss": {},
    }  # fmt: skip
    return Settings.model_validate(fields | changes)


@pytest.mark.parametrize("n_dims", [2, 3])
def test_smallest_settings_are_complete(n_dims: int) -> None:
    assert settings(n_dims).data.n_dims == n_dims
    assert published_entry(settings(n_dims))["patch_size"] == [16] * n_dims


def test_settings_cannot_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        settings().epochs = 2  # type: ignore[misc]


def test_settings_survive_json() -> None:
    original = settings(rigidity={"coefficient": {"values": [0, 1], "coefficients": [1, 2]}})
    assert Settings.model_validate_json(original.model_dump_json()) == original


@pytest.mark.parametrize(("name", "role"), LABEL_ROLES.items())
def test_label_names_have_a_role_in_the_prepared_layout(name: str, role: str) -> None:
    same = {"lower": [0.5, 0.5], "upper": [0.5, 0.5]}
    keys = ("width_range", "magnitude_range", "center_range", "translation_range")
    deformation = {**dict.fromkeys(keys, same), "degree_range": {"lower": [0], "upper": [0]}}
    made = name == ON_THE_FLY
    assert settings(trains_on_label=name, label_deformation=deformation if made else None).label_role == role
    assert role in {"label", "label_aligned", "label_registered"}


@pytest.mark.parametrize(
    ("n_dims", "key", "count"),
    [
        (n_dims, key, n_dims if key in ("log_scale_std", "translation") else n_dims * (n_dims - 1) // 2)
        for n_dims in (2, 3)
        for key in ("rotation_degrees", "log_scale_std", "log_shear_std", "translation")
    ],
)
def test_one_range_for_all_or_one_per_axis(n_dims: int, key: str, count: int) -> None:
    single: Any = [-1.0, 1.0] if key in ("rotation_degrees", "translation") else 0.1
    for value in (single, [single] * count, None):
        settings(n_dims, random_transformation={key: value})
    with pytest.raises(ValidationError, match=f"{key} has {count + 1} entries"):
        settings(n_dims, random_transformation={key: [single] * (count + 1)})


@pytest.mark.parametrize(
    ("features", "smallest", "needed"),
    [
        ({"i2i": [4, 8, 8]}, 4, "divisible by"),
        ({"i2i": [4], "cross_modality_reg": [4, 8, 8]}, 4, "divisible by"),
        ({"i2i": [4], "rigid_reg": [4, 8, 8]}, 8, "of at least"),
        ({"i2i": [4], "discriminator": [4, 8, 8]}, 8, "divisible by"),
    ],
)
def test_patches_must_be_halved_as_often_as_the_deepest_network_asks(
    features: dict[str, Any], smallest: int, needed: str
) -> None:
    settings(features=features, patch_size=[smallest, 3 * smallest])
    with pytest.raises(ValidationError, match=f"{needed} {smallest}"):
        settings(features=features, patch_size=[smallest, smallest // 2])


def test_discriminators_need_two_samples_and_settings_of_their_own() -> None:
    needed: dict[str, Any] = {
        "discriminator": "conditional",
        "features": {"i2i": [4, 8], "discriminator": [4, 8]},
        "learning_rate": {"generator": 1e-4, "discriminator": 4e-4},
    }
    settings(**needed)
    with pytest.raises(ValidationError, match="batch_size is 1"):
        settings(**needed, batch_size=1)
    with pytest.raises(ValidationError, match="needed"):
        settings(**(needed | {"features": {"i2i": [4, 8]}}))


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": [0.0, 0.0]},
        {"channels": 3, "std": [1.0]},
        {"std": [0.0]},
        {"clip": [2.0, 1.0]},
        {"clip": [1.0, 1.0]},
        {"signal_range": 0},
        {"signal_range": float("inf")},
        {"channels": 0},
        {"units": "1"},
    ],
)
def test_intensities_that_mean_nothing(changes: dict[str, Any]) -> None:
    Intensity.model_validate(INTENSITY)
    with pytest.raises(ValidationError):
        Intensity.model_validate(INTENSITY | changes)


def test_voxel_size_has_one_value_per_axis() -> None:
    fields = {"n_dims": 3, "voxel_size": [1.0, 1.0], "input": INTENSITY, "label": INTENSITY, "licence": "none"}
    with pytest.raises(ValidationError, match="expected n_dims = 3"):
        Data.model_validate(fields)


def test_rigidity_coefficient_is_a_function() -> None:
    RigidityCoefficient(values=(0.0, 1.0), coefficients=(1.0, 0.0))


@pytest.mark.parametrize(
    ("values", "coefficients"),
    [((0.0,), (1.0,)), ((0.0, 1.0), (1.0,)), ((1.0, 0.0), (1.0, 2.0)), ((1.0, 1.0), (0.0, 2.0))],
)
def test_rigidity_coefficients_that_are_no_functions(
    values: tuple[float, ...], coefficients: tuple[float, ...]
) -> None:
    with pytest.raises(ValidationError):
        RigidityCoefficient(values=values, coefficients=coefficients)
