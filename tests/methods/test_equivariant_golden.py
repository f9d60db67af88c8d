"""The equivariant method prints the numbers of the reference: every value of a pass, and trainings of all variants."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from equisynth.geometry.transforms import Field, Image
from equisynth.losses import interpolate
from equisynth.methods import equivariant
from equisynth.methods.equivariant import Equivariant, Pass
from golden_data import files, load
from method_golden import Training, batch_of, load_states, negated_angles, settings_of, variants

ATTRIBUTES = {
    "rigidly_deformed_label": lambda p: p.label_rigid,
    "forward_elastic_cross_modality_deformation": lambda p: p.elastic_cross[0],
    "inverse_elastic_cross_modality_deformation": lambda p: p.elastic_cross[1],
    "forward_cross_modality_deformation": lambda p: p.cross,
    "inverse_cross_modality_deformation": lambda p: p.cross_inverse,
    "cross_modality_deformed_label": lambda p: p.label_cross,
    "forward_intra_modality_deformation": lambda p: p.elastic_intra,
    "inverse_intra_modality_deformation": lambda p: p.elastic_intra_inverse,
    "random_deformed_input": lambda p: p.random_input,
    "output": lambda p: p.output,
    "left_random_deformed_output": lambda p: p.random_output,
    "right_random_deformed_output": lambda p: p.output_random,
    "output_commutation_deformation": lambda p: p.commutation,
    "commutation_deformed_output": lambda p: p.commuted,
    "random_commutation_deformation": lambda p: p.commutation.then(p.random),
    "random_commutation_deformed_output": lambda p: p.commuted_random,
    "random_cross_modality_deformed_label": lambda p: p.label_random,
    "deformed_output": lambda p: p.fitted,
    "forward_deformation": lambda p: p.forward,
    "inverse_deformation": lambda p: p.inverse,
    "predicted_deformation_left_deformed_output": lambda p: p.predicted_output,
    "predicted_deformation_right_deformed_output": lambda p: p.output_predicted,
    "forward_elastic_deformation": lambda p: p.elastic_forward,
    "inverse_elastic_deformation": lambda p: p.elastic_inverse,
}
UNTRACKED = ("forward_elastic_deformation", "inverse_elastic_deformation")
"""Only their penalty is used, which asks for no mask: none is computed."""
INVERSE = (
    "inverse_rigid_transformation",
    "inverse_cross_modality_deformation",
    "inverse_deformation",
    "predicted_deformation_",
)
"""Known difference in 3D: the reference's inverse rigid transformation is not an inverse; ours is exact."""
FILES = [(file, dimensions) for file in files("06_i2ireg_*") for dimensions in load(file).children()]


def put_back_oddities(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the reference does and we mend, put back: with it everything must match."""
    shown = Equivariant._shown

    def deformed_condition(self: Equivariant, done: Pass):
        condition, real, fake = shown(self, done)
        return condition if condition is None else done.random_input.values, real, fake

    def extrapolated(values, mask, intensities, coefficients):
        result = interpolate(values.mean(dim=1, keepdim=True), intensities, coefficients)
        return torch.where(mask > 0, result, coefficients[0])

    monkeypatch.setattr(Equivariant, "_shown", deformed_condition)
    monkeypatch.setattr(equivariant, "rigidity_coefficient", extrapolated)
    monkeypatch.setattr(Pass, "rigid_inverse", negated_angles)


def touched(variant: str, dimensions: str) -> set[str]:
    """Losses that a mended oddity changes in a variant, by the reference's names: known differences."""
    losses = set()
    if "defadv" in variant:  # D sees the undeformed input beside undeformed images, the reference the deformed input
        losses |= {"g_d_err", "d_err"}
    if "rigcoef" in variant:  # the coefficient is clamped, the reference extrapolates
        losses |= {"fwd_rig", "inv_rig"}
    if "selfdi" in variant and dimensions == "3d":  # T⁻¹ is exact
        losses |= {"self_di"}
    return losses and losses | {"loss"}


def recorded_pass(file: str, dimensions: str) -> tuple[Pass, Equivariant]:
    golden = load(file) / dimensions
    method = Equivariant(settings_of(golden.json("base_config_json"), "equivariant"))
    load_states(method, golden)
    return method.run(batch_of(golden / "batch0", method.settings.data.voxel_size)[2:4], equivariant=True), method


def check_pass(file: str, dimensions: str, skip: tuple[str, ...] = ()) -> None:
    golden = load(file) / dimensions / "outputs"
    done, method = recorded_pass(file, dimensions)
    golden.check("rigid_angles", done.rigid_parameters[0], 1e-4)
    golden.check("rigid_translations", done.rigid_parameters[1], 1e-4)
    size = np.diag([*method.settings.data.voxel_size, 1.0])
    matrices = {
        "forward_rigid_transformation": done.rigid,
        "inverse_rigid_transformation": done.rigid_inverse,
        "inverse_random_transformation": done.random.inverse(),
    }
    for name, transformation in matrices.items():
        if not name.startswith(skip or "-"):
            world = size @ transformation.matrix.detach().double().numpy() @ np.linalg.inv(size)
            golden.check(f"{name}/matrix", world, 1e-4)
    for name in golden.children():
        if name in matrices or name.startswith(skip or "-"):
            continue
        found = ATTRIBUTES[name](done)
        if isinstance(found, Image):
            golden.check(f"{name}/volume", found.values, 1e-4)
        else:
            assert isinstance(found, Field)
            golden.check(f"{name}/deformation", found.displacement, 1e-4)
        if name not in UNTRACKED:
            expected = golden[f"{name}/mask"] if golden[f"{name}/has_mask"] else 1.0
            assert np.array_equal(found.valid().numpy(), np.broadcast_to(expected, found.valid().shape)), name


@pytest.mark.parametrize("file, dimensions", FILES)
def test_every_value_of_a_pass(file: str, dimensions: str) -> None:
    check_pass(file, dimensions, skip=INVERSE if dimensions == "3d" else ())


@pytest.mark.parametrize("file, dimensions", FILES)
def test_every_value_of_a_pass_with_the_inexact_inverse(
    file: str, dimensions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_back_oddities(monkeypatch)
    check_pass(file, dimensions)


@pytest.mark.parametrize("file, dimensions", FILES)
def test_prediction(file: str, dimensions: str) -> None:
    golden = load(file) / dimensions
    _, method = recorded_pass(file, dimensions)
    batch = batch_of(golden / "batch0", method.settings.data.voxel_size)[2:4]
    with torch.no_grad():
        golden.check(
            "inference_output", method.translate(method.networks["i2i"], batch.input.values, batch.input.mask), 1e-4
        )


@pytest.mark.parametrize("file, dimensions, variant", variants("disc_", "nodisc_", "uncond_"))
def test_training(file: str, dimensions: str, variant: str) -> None:
    golden = load(file) / dimensions
    record = golden / "train" / variant
    training = Training(Equivariant(settings_of(record.json("config_json"), "equivariant")), golden)
    changed = touched(variant, dimensions)
    training.check_first_losses(record, without=changed)
    if not changed:
        training.check_all(record)


@pytest.mark.parametrize(
    "file, dimensions, variant",
    [case for case in variants("disc_", "nodisc_", "uncond_") if touched(case[2], case[1])],
)
def test_training_of_mended_variants_with_the_oddity_put_back(
    file: str, dimensions: str, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_back_oddities(monkeypatch)
    golden = load(file) / dimensions
    record = golden / "train" / variant
    Training(Equivariant(settings_of(record.json("config_json"), "equivariant")), golden).check_all(record)
