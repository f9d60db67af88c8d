"""Runs a method on the golden training batches and compares what it prints with the reference's record."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equisynth.config import Settings
from equisynth.geometry.affine import rigid_matrix
from equisynth.geometry.transforms import Affine, Image
from equisynth.methods.base import SELECTION, Batch, Method
from equisynth.methods.equivariant import Pass
from golden_data import Golden, files, load

LOSSES = {
    "loss": "loss",
    "sim": "similarity",
    "rig_sim": "rigid_similarity",
    "cross_sim": "cross_similarity",
    "intra_sim": "intra_similarity",
    "di": "commutation",
    "self_di": "self_commutation",
    "fwd_rig": "forward_rigidity_sum",
    "inv_rig": "inverse_rigidity_sum",
    "rot_cnstr": "rotation_limit",
    "trans_cnstr": "translation_limit",
    "def_length": "displacement",
    "intra_def_length": "intra_displacement",
    "def_y": "drift_axis_0",
    "def_x": "drift_axis_1",
    "g_d_err": "adversarial",
    "d_err": "discriminator_sum",
}
"""The reference's names of losses -> ours."""


def variants(*prefixes: str) -> list[tuple[str, str, str]]:
    """(file, dimensions, variant) of all recorded trainings whose name starts with one of the prefixes."""
    return [
        (file, dimensions, variant)
        for file in files("06_i2ireg_*")
        for dimensions in load(file).children()
        for variant in (load(file) / dimensions / "train").children()
        if variant.startswith(prefixes)
    ]


def settings_of(config: dict[str, Any], method: str) -> Settings:
    """Our settings from one of the reference's configurations."""
    model, training, loss = config["model"], config["training"], config["training"]["loss"]
    voxel_size = config["data_loader"]["voxel_size"]
    adversary = loss.get("discriminator_weight") is not None
    conditional = model.get("conditional_discriminator", True)
    deformation, given = loss.get("deformation"), loss.get("rigidity_coefficient")
    rigidity = deformation and {key: value for key, value in deformation.items() if key != "voxel_size"}
    if given is not None:
        arguments = given["args"]
        points = {"values": arguments["ct_values"], "coefficients": arguments["coefficient_values"]}
        rigidity = rigidity | {"coefficient": points}

    def intensity(side: str) -> dict[str, Any]:
        n = model[f"n_{side}_channels"]
        return {"modality": side, "channels": n, "mean": (0.0,) * n, "std": (1.0,) * n, "signal_range": 1, "unit": ""}

    return Settings.model_validate({
        "experiment": "golden", "scale": "golden", "dataset": "golden", "method": method,
        "data": {"n_dims": len(voxel_size), "voxel_size": voxel_size, "input": intensity("input"),
                 "label": intensity("output"), "licence": "none"},
        "trains_on_label": "deformed", "batch_size": 4, "patch_size": config["data_loader"]["patch_size"],
        "random_transformation": {}, "epochs": 1,
        "augment_with_random_transformation": training.get("augment_using_the_random_transformations", False),
        "features": {key: model.get(f"n_features_per_block_{key}") for key in
                     ("i2i", "rigid_reg", "cross_modality_reg", "intra_modality_reg", "discriminator")},
        "normalization_groups": model["n_normalization_groups"], "final_activation": model["final_activation"],
        "learning_rate": {"generator": training["learning_rate_generator"],
                          "discriminator": training.get("learning_rate_discriminator")},
        "loss": {
            "similarity": loss["similarity_loss"],
            "similarity_weight": loss.get("similarity_weight"),
            "cross_modality_similarity": loss.get("cross_modality_similarity_weight"),
            "intra_modality_similarity": loss.get("intra_modality_similarity_weight"),
            "rigid_similarity": loss.get("rigid_similarity_weight"),
            "forward_rigidity": loss.get("forward_rigidity_weight"),
            "inverse_rigidity": loss.get("inverse_rigidity_weight"),
            "commutation": loss.get("di_weight"),
            "self_commutation": loss.get("self_di_weight"),
            "discriminator": loss.get("discriminator_weight"),
            "adversarial": loss.get("discriminator_weight_generator"),
            "max_rotation_degrees": loss.get("max_rotation"),
            "max_translation": loss.get("max_translation"),
            "equivariant_similarity": loss.get("use_implicit_di"),
            "equivariant_adversarial": loss.get("use_eqadv", True),
        },
        "rigidity": rigidity,
        "discriminator": ("conditional" if conditional else "unconditional") if adversary else "none",
    })  # fmt: skip


def batch_of(golden: Golden, voxel_size: Iterable[float]) -> Batch:
    """A recorded batch."""

    def image(side: str) -> Image:
        return Image(torch.from_numpy(golden[side]), torch.from_numpy(golden[f"{side}_mask"]))

    matrix = torch.from_numpy(golden["random_affine"])
    return Batch(image("input"), image("label"), Affine.from_world(matrix, tuple(voxel_size)))


def load_states(method: Method, golden: Golden) -> None:
    """The recorded initial states; ours have other names in the same order."""
    generator = [network for name, network in method.networks.items() if name != "discriminator"]
    nemar = method.settings.method == "nemar_equivariant"
    load_in_order(generator, golden / ("state_nemar_nd" if nemar else "state_i2ireg"))
    if "discriminator" in method.networks:
        unconditional = method.settings.discriminator == "unconditional"
        state = golden / ("state_unconditional_discriminator" if unconditional else "state_discriminator")
        load_in_order([method.networks["discriminator"]], state)


def load_in_order(networks: Iterable[nn.Module], state: Golden) -> None:
    """Copies recorded arrays into the parameters and buffers of networks, in order, checking shapes."""
    ours = list(tensors_of(networks))
    recorded = [state[str(name)] for name in state["__order__"]][: len(ours)]
    for tensor, array in zip(ours, recorded, strict=True):
        assert tuple(tensor.shape) == array.shape
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(array))


def tensors_of(networks: Iterable[nn.Module]) -> Iterator[Tensor]:
    for network in networks:
        yield from network.state_dict(keep_vars=True).values()


class Training:
    """Three steps on the recorded batches and a validation pass, in the trainer's manner."""

    def __init__(self, method: Method, golden: Golden) -> None:
        self.method, self.golden = method, golden
        load_states(method, golden)
        method.monitor = True
        method.train()
        self.losses: dict[str, list[float]] = {name: [] for name in LOSSES.values()}
        self.logits: list[list[np.ndarray]] = []
        self.gradients: list[Tensor] = []
        self.states: dict[str, list[Tensor]] = {}
        voxel_size = method.settings.data.voxel_size
        if "discriminator" in method.networks:
            method.networks["discriminator"].register_forward_hook(
                lambda module, given, logits: self.logits[-1].append(logits.detach().numpy().copy())
            )
        for step in range(3):
            self._step(step, batch_of(golden / f"batch{step}", voxel_size))
        method.train(False)
        with torch.no_grad():
            self.selection = float(method.validation(batch_of(golden / "validation_batch0", voxel_size))[SELECTION])

    def _step(self, step: int, batch: Batch) -> None:
        self.logits.append([])
        log: dict[str, Tensor] = {}
        for update in self.method.updates(batch):
            optimiser = self.method.optimisers[update.optimiser]
            optimiser.zero_grad(set_to_none=True)
            update.loss.backward()
            if step == 0 and update.optimiser == "generator":
                self.gradients = [
                    parameter.grad.clone() if parameter.grad is not None else torch.zeros_like(parameter)
                    for network in self._generator()
                    for parameter in network.parameters()
                ]
            optimiser.step()
            log |= update.log
        if "discriminator_real" in log:  # NEMAR has two fakes
            judged, fooled = (
                [value for name, value in log.items() if name.startswith(key)]
                for key in ("discriminator_", "adversarial")
            )
            self.bce = [*judged, *fooled]
            log |= {"discriminator_sum": torch.stack(judged).sum(), "adversarial": torch.stack(fooled).sum()}
        if "forward_rigidity" in log:  # NEMAR has one field
            log["forward_rigidity_sum"] = log["forward_rigidity"]
        for name, values in self.losses.items():
            values.append(float(log.get(name, 0.0)))
        if step in (0, 2):
            self.states[f"generator_after_step{step + 1}"] = [t.detach().clone() for t in tensors_of(self._generator())]
            if "discriminator" in self.method.networks:
                network = self.method.networks["discriminator"]
                self.states[f"discriminator_after_step{step + 1}"] = [t.detach().clone() for t in tensors_of([network])]

    def _generator(self) -> list[nn.Module]:
        return [network for name, network in self.method.networks.items() if name != "discriminator"]

    def check_first_losses(self, record: Golden, without: Iterable[str] = ()) -> None:
        """The losses of the first step, by the reference's names, apart from those in ``without``."""
        names = [key.removeprefix("loss/") for key in record.keys() if key.startswith("loss/")]
        assert names
        for name in names:
            if name not in without:
                expected, found = record[f"loss/{name}"], self.losses[LOSSES[name]]
                close(f"loss/{name}[0]", found[:1], expected[:1], record, f"loss/{name}", 1e-4)

    def check_all(self, record: Golden, validation: bool = True) -> None:
        """Everything: losses of all steps, logits, gradients, states, and (optionally) the validation."""
        self.check_first_losses(record)
        for key in record.keys():
            if key.startswith("loss/"):
                close(key, self.losses[LOSSES[key.removeprefix("loss/")]], record[key], record, key, 1e-3)
        if "bce_logits" in record:
            close("bce_logits", np.array(self.logits), record["bce_logits"], record, "bce_logits", 1e-3)
            first = np.array(self.logits)[0]
            close("bce_logits[0]", first, record["bce_logits"][0], record, "bce_logits", 1e-3)
            close("bce_values", [float(v) for v in self.bce], record["bce_values"][-1], record, "bce_values", 1e-3)
        check_checksums(record / "generator_gradient_step1", self.gradients)
        for name, state in self.states.items():
            check_checksums(record / name, state)
        if validation:
            for key in record.keys():
                if key.startswith("validation_loss/"):
                    close(key, [self.selection], record[key], record, key, 1e-3)


def check_checksums(record: Golden, tensors: list[Tensor]) -> None:
    arrays = [tensor.detach().double().contiguous().numpy() for tensor in tensors]
    assert len(arrays) == len(record["names"])
    found = {
        "sum": [array.sum() for array in arrays],
        "sumsq": [np.square(array).sum() for array in arrays],
        "first5": [np.pad(a.ravel()[:5], (0, max(0, 5 - a.size)), constant_values=np.nan) for a in arrays],
    }
    for key, values in found.items():
        record.check(key, np.array(values), 2e-3)


def close(what: str, found: Any, expected: Any, record: Golden, key: str, stated: float) -> None:
    """Relative to the largest magnitude of the recorded array."""
    found, expected = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    assert found.shape == expected.shape, f"{record.prefix}{what}: {found.shape}, recorded {expected.shape}"
    scale = max(float(np.abs(record[key]).max()), 1e-30)
    error, limit = float(np.abs(found - expected).max()) / scale, record.tolerance(key, stated)
    assert error <= limit, f"{record.prefix}{what}: {found} differs from {expected} by {error:.3g}, allowed {limit:.3g}"


@cached_property
def negated_angles(self: Pass) -> Affine:
    """The reference's inverse of T: the rotation of the negated angles, which in 3D is not the inverse rotation."""
    angles, translation = (parameter.detach() for parameter in self.rigid_parameters)
    shape = self.input.values.shape[2:]
    centre = angles.new_tensor([s * (n - 1) / 2 for s, n in zip(self.voxel_size, shape, strict=True)])
    return Affine.from_world(rigid_matrix(-angles, -translation, centre + translation), self.voxel_size)


negated_angles.__set_name__(Pass, "rigid_inverse")
