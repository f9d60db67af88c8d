"""Weights of the authors' code: imported they predict what theirs did; anything else ends in one line."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from baseline_golden import gan_settings, record, recorded_batch, records
from baseline_golden import settings as baseline_settings
from equisynth import import_weights, params
from equisynth.cli import main
from equisynth.config import Settings
from equisynth.errors import UserError
from equisynth.import_weights import NAMES, expected_states, match, read, write
from equisynth.method_names import method_names
from equisynth.methods.base import build_method, method_class
from equisynth.model import load_model, read_weights
from equisynth.networks.field_network import ARCHITECTURES, FieldArchitecture
from golden_data import DIRECTORY, Golden, files, load
from method_golden import batch_of, settings_of

PARAMETERS = Path(__file__).parents[1] / "params.yaml"
ADAM = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 1e-4}]}
NAMES_FILE = DIRECTORY / "full_size_state_names.json"
FULL_SIZE = json.loads(NAMES_FILE.read_text()) if NAMES_FILE.exists() else {}
CASES = [(file, dimensions) for file in files("06_i2ireg_*") for dimensions in load(file).children()]
STATES = {
    "equivariant": {"model_state_dict": "state_i2ireg", "discriminator_model_state_dict": "state_discriminator"},
    "nemar_equivariant": {
        "model_state_dict": "state_nemar_nd", "discriminator_model_state_dict": "state_discriminator",
    },
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_construction_per_settings() -> Iterator[None]:
    """What an experiment expects is worked out once: that takes a second."""
    known: dict[str, dict[str, dict[str, Tensor]]] = {}

    def remembered(settings: Settings) -> dict[str, dict[str, Tensor]]:
        key = settings.model_dump_json()
        if key not in known:
            known[key] = expected_states(settings)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_weights, "expected_states", remembered)
        yield


def recorded(golden: Golden) -> OrderedDict[str, Tensor]:
    """A recorded state as ``Module.state_dict`` gives it."""
    return OrderedDict((str(name), torch.from_numpy(golden[str(name)])) for name in golden["__order__"])


def saved(path: Path, epoch: int = 7, **content: Any) -> Path:
    torch.save({"epoch": epoch, **content, "optimizer_state_dict": ADAM, "optimizers": {"D": ADAM}}, path)
    return path


def imported(path: Path, settings: Settings, folder: Path) -> torch.nn.Module:
    write(read(path, settings), settings, {}, folder)
    model = load_model(folder, "cpu")
    assert model.description.best_epoch == 7
    assert model.description.settings == settings
    return model.network


def of_method(method: str, file: str, dimensions: str) -> tuple[Settings, dict[str, OrderedDict[str, Tensor]], Golden]:
    golden = load(file) / dimensions
    states = {key: recorded(golden / state) for key, state in STATES[method].items()}
    return settings_of(golden.json("base_config_json"), method), states, golden


@pytest.mark.parametrize("method", STATES)
@pytest.mark.parametrize("file, dimensions", CASES)
def test_imported_weights_predict_as_recorded(method: str, file: str, dimensions: str, tmp_path: Path) -> None:
    settings, states, golden = of_method(method, file, dimensions)
    network = imported(saved(tmp_path / "weights.pt", **states), settings, tmp_path / "model")
    batch = batch_of(golden / "batch0", settings.data.voxel_size)[2:4]
    with torch.no_grad():
        output = method_class(method).translate(network, batch.input.values, batch.input.mask)
    if method == "equivariant":
        golden.check("inference_output", output, 1e-4)
    else:
        golden.check("nemar_outputs/output/volume", output, 1e-4)


@pytest.mark.parametrize("method", STATES)
def test_every_tensor_arrives(method: str, tmp_path: Path) -> None:
    settings, states, _ = of_method(method, *CASES[0])
    imported(saved(tmp_path / "weights.pt", **states), settings, tmp_path / "model")
    found = sorted(float(tensor.double().square().sum()) for tensor in tensors_in(tmp_path / "model"))
    expected = sorted(float(t.double().square().sum()) for state in states.values() for t in state.values())
    assert found == expected
    assert {name.partition(".")[0] for name in names_in(tmp_path / "model")} == set(build_method(settings).networks)


def names_in(folder: Path) -> list[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return list(file.keys())


def tensors_in(folder: Path) -> list[Tensor]:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return [file.get_tensor(name) for name in file.keys()]


def supervised(adversary: bool = True) -> tuple[Settings, dict[str, OrderedDict[str, Tensor]], Golden]:
    settings, states, golden = of_method("equivariant", *CASES[0])
    config = golden.json("base_config_json")
    if not adversary:
        del config["training"]["loss"]["discriminator_weight"]
    prefix = "i2i_unet."
    network = OrderedDict((k[len(prefix) :], v) for k, v in states["model_state_dict"].items() if k.startswith(prefix))
    found = {"model_state_dict": network}
    if adversary:
        found["discriminator_model_state_dict"] = states["discriminator_model_state_dict"]
    return settings_of(config, "supervised"), found, golden


@pytest.mark.parametrize("adversary", [True, False])
def test_supervised(adversary: bool, tmp_path: Path) -> None:
    settings, states, golden = supervised(adversary)
    network = imported(saved(tmp_path / "weights.pt", **states), settings, tmp_path / "model")
    batch = batch_of(golden / "batch0", settings.data.voxel_size)[2:4]
    with torch.no_grad():
        golden.check("inference_output", network(batch.input.values), 1e-4)


@pytest.mark.parametrize(
    "change",
    ["separate state dicts", "legacy spectral norm", "several devices", "half precision", "without discriminator"],
)
def test_other_ways_to_store_the_same_weights(change: str, tmp_path: Path) -> None:
    settings, states, golden = of_method("nemar_equivariant", *CASES[0])
    whole, discriminator = states["model_state_dict"], states["discriminator_model_state_dict"]
    content: dict[str, Any] = dict(states)
    if change == "separate state dicts":
        content = {"discriminator_state_dict": discriminator}
        for key, prefix in (("generator", "i2i_unet."), ("registration", "cross_modality_registration_unet.")):
            state = {name[len(prefix) :]: t for name, t in whole.items() if name.startswith(prefix)}
            content[f"{key}_state_dict"] = state
    elif change == "legacy spectral norm":
        names = {"parametrizations.weight.original": "weight_orig", "parametrizations.weight.0._u": "weight_u",
                 "parametrizations.weight.0._v": "weight_v"}  # fmt: skip
        renamed: OrderedDict[str, Tensor] = OrderedDict()
        for name, tensor in discriminator.items():
            new = name
            for ours, theirs in names.items():
                new = new.replace(ours, theirs)
            renamed[new] = tensor
        content["discriminator_model_state_dict"] = renamed
        assert renamed.keys() != discriminator.keys()
    elif change == "several devices":
        content["model_state_dict"] = {f"module.{name}": tensor for name, tensor in whole.items()}
    elif change == "half precision":
        content["model_state_dict"] = {name: tensor.double() for name, tensor in whole.items()}
    else:
        del content["discriminator_model_state_dict"]
    network = imported(saved(tmp_path / "weights.pt", **content), settings, tmp_path / "model")
    batch = batch_of(golden / "batch0", settings.data.voxel_size)[2:4]
    with torch.no_grad():
        golden.check("nemar_outputs/output/volume", network(batch.input.values), 1e-4)
    left_out = change == "without discriminator"
    assert any(name.startswith("discriminator.") for name in names_in(tmp_path / "model")) != left_out


# The baselines

GAN_NAMES = {
    "pix2pix": {"netG": "i2i", "netD": "discriminator"},
    "cycle_gan": {
        "netG_A": "i2i", "netG_B": "back", "netD_A": "discriminator_label", "netD_B": "discriminator_input",
    },
    "nemar": {"netT": "i2i", "netR": "registration", "netD": "discriminator"},
}  # fmt: skip
WEIGHTS = {
    "pix2pix": {"lambda_L1": "l1_weight"},
    "cycle_gan": {
        "lambda_A": "cycle_weight_input", "lambda_B": "cycle_weight_label", "lambda_identity": "identity_weight",
    },
    "nemar": {},
}  # fmt: skip
RECORDS = [
    (method, name)
    for method, prefix in (("pix2pix", "pix2pix"), ("cycle_gan", "cyclegan"), ("nemar", "nemar"))
    for name in records(prefix)
]


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("method, name", RECORDS)
def test_baselines(method: str, name: str, nested: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = record(name)
    batch = recorded_batch(golden / "batch0")
    options = golden.json("options_json")
    settings = gan_settings(method, options, WEIGHTS[method], batch.input.values.shape[2:])
    if method == "nemar":
        monkeypatch.setitem(ARCHITECTURES, "S", FieldArchitecture((4, 5), (5, 4), 1))
        network = settings.network | {"transformer_architecture": "S"}
        background = {"augmentation_label_background_value": -1.5}
        settings = settings.model_copy(update={"network": network} | background)
    states = {theirs.removeprefix("net"): recorded(golden / f"state_{theirs}") for theirs in GAN_NAMES[method]}
    content = {"model_state_dict": states} if nested else {f"{key}_state_dict": s for key, s in states.items()}
    network = imported(saved(tmp_path / "weights.pt", **content), settings, tmp_path / "model")
    source, mask = batch.input.values.float(), torch.ones(())
    if options.get("use_masking", method != "nemar"):
        mask = batch.input.comparison_mask(batch.label) if method == "pix2pix" else batch.input.valid()
        source = source * mask if method == "pix2pix" else source
    with torch.no_grad():
        (golden / "step0").check("fake_B", network(source.float()) * mask, 1e-4)
    found = {theirs: list(states[theirs.removeprefix("net")].values()) for theirs in GAN_NAMES[method]}
    for theirs, ours in GAN_NAMES[method].items():
        written = read_weights(tmp_path / "model/model.safetensors", f"{ours}.")
        in_order = [written[name] for name in expected_states(settings)[ours]]
        assert all(torch.equal(one, other) for one, other in zip(in_order, found[theirs], strict=True)), ours


@pytest.mark.parametrize("name", records("reggan"))
def test_reg_gan(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = record(name)
    monkeypatch.setitem(ARCHITECTURES, "S", FieldArchitecture((4, 5), (5, 4), 1))
    width = golden["state_generator/model.1.bias"].size
    narrow = golden["state_discriminator/model.1.bias"].size
    model = golden.json("config_json")["model"]
    settings = baseline_settings(
        "reg_gan",
        {"registration_architecture": "S", "blocks": model["n_blocks"], "final_activation": model["final_activation"],
         "generator_width": width, "discriminator_width": narrow},
        model["size"], batch_size=1,
    )  # fmt: skip
    states = {f"{key}_state_dict": recorded(golden / f"state_{key}") for key in ("generator", "discriminator", "reg")}
    network = imported(saved(tmp_path / "weights.pt", **states), settings, tmp_path / "model")
    source = torch.from_numpy(golden["batch0/input"])
    with torch.no_grad():  # the recorded pass was one of training: it advanced the power iterations
        (golden / "forward").check("prediction", network.train()(source), 1e-4)


# Published sizes


@pytest.mark.parametrize("configuration", FULL_SIZE)
def test_published_sizes(configuration: str) -> None:
    """Names, shapes and numbers of parameters of four published configurations, of which nothing is allocated."""
    entry = FULL_SIZE[configuration]
    loss = {"similarity_loss": "mae", "deformation": {}}
    if "discriminator" in entry:
        loss |= {"discriminator_weight": 0.01}
    settings = settings_of(
        {
            "model": entry["model"], "data_loader": entry, "training": {
                "learning_rate_generator": 1e-4, "learning_rate_discriminator": 4e-4, "loss": loss,
            },
        },
        "equivariant",
    )  # fmt: skip
    content: dict[str, Any] = {"epoch": 1}
    for key, theirs in (("model_state_dict", "i2ireg"), ("discriminator_model_state_dict", "discriminator")):
        if theirs in entry:
            content[key] = {name: torch.empty(shape, device="meta") for name, shape in entry[theirs]["state"]}
    found = dict(import_weights._tensors(content, "file"))
    count = {"i2ireg": 0, "discriminator": 0}
    for network, state in expected_states(settings).items():
        pairs = match(import_weights._take(found, NAMES["equivariant"][network]), state)
        assert list(pairs) == list(state)
        vectors = ("._u", "._v")  # of the spectral norms: no parameters
        part = network if network in count else "i2ireg"
        count[part] += sum(tensor.numel() for name, tensor in state.items() if not name.endswith(vectors))
    assert not found
    assert count == {part: entry.get(part, {}).get("n_parameters", 0) for part in count}


# Refusals


class Bomb:
    """Unpickled by a careless reader it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (str(self.place),)


def _rewritten(path: Path, change: Callable[[zipfile.ZipInfo, bytes], tuple[str, bytes]], **how: Any) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = [(entry, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", **how) as archive:
        for entry, data in entries:
            archive.writestr(*change(entry, data))


def _truncated(path: Path, content: dict[str, Any]) -> None:
    torch.save(content, path)
    path.write_bytes(path.read_bytes()[:-300])


def _flipped(path: Path, content: dict[str, Any]) -> None:
    torch.save(content, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


def _compressed(path: Path, content: dict[str, Any]) -> None:
    torch.save(content, path)
    _rewritten(path, lambda entry, data: (entry.filename, data), compression=zipfile.ZIP_DEFLATED)


def _no_pickle(path: Path, content: dict[str, Any]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/version", "3")


def _spoilt_pickle(path: Path, content: dict[str, Any]) -> None:
    torch.save(content, path)
    _rewritten(path, lambda entry, data: (entry.filename, data[:-20] if entry.filename.endswith("pkl") else data))


def _storage_lost(path: Path, content: dict[str, Any]) -> None:
    torch.save(content, path)
    _rewritten(path, lambda entry, data: (entry.filename.replace("data/3", "data/999"), data))


def _script(path: Path, content: dict[str, Any]) -> None:
    torch.save(content, path)
    _rewritten(path, lambda entry, data: (entry.filename.replace("version", "code/program.py"), data))


def _deep(path: Path, content: dict[str, Any]) -> None:
    content["more"] = content
    torch.save(content, path)


BAD_FILES: dict[str, tuple[Callable[[Path, dict[str, Any]], None], str]] = {
    "absent": (lambda path, content: None, "no such file"),
    "folder": (lambda path, content: path.mkdir(), "is a folder"),
    "bare state": (lambda path, content: torch.save({"a.weight": torch.ones(1)}, path), "the tensors of one network"),
    "empty": (lambda path, content: path.touch(), "no whole zip archive"),
    "text": (lambda path, content: path.write_text("weights") and None, "no whole zip archive"),
    "truncated": (_truncated, "no whole zip archive"),
    "flipped": (_flipped, "is damaged|no whole zip archive"),
    "compressed": (_compressed, "does not write"),
    "no pickle": (_no_pickle, "without the data.pkl"),
    "spoilt pickle": (_spoilt_pickle, "is damaged"),
    "storage lost": (_storage_lost, "is damaged"),
    "program": (_script, "code/program.py"),
    "old format": (
        lambda path, content: torch.save(content, path, _use_new_zipfile_serialization=False),
        "no whole zip archive",
    ),
    "code": (
        lambda path, content: torch.save(content | {"more": Bomb(path.with_name("made"))}, path),
        "holds more than weights .*mkdir",
    ),
    "whole module": (lambda path, content: torch.save(torch.nn.Linear(1, 1), path), "holds more than weights .*Linear"),
    "tensor": (lambda path, content: torch.save(torch.ones(3), path), "holds a Tensor"),
    "list": (lambda path, content: torch.save([content], path), "holds a list"),
    "within itself": (_deep, "too deep"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_other_files_end_in_one_line(kind: str, tmp_path: Path) -> None:
    settings, states, _ = of_method("nemar_equivariant", *CASES[0])
    make, complaint = BAD_FILES[kind]
    path = tmp_path / "weights.pt"
    make(path, {"epoch": 7, **states})
    refused(path, settings, complaint)
    assert not (tmp_path / "made").exists()


def test_own_weights_are_not_the_authors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    refused(path, of_method("nemar_equivariant", *CASES[0])[0], "is a safetensors file, as this program writes")


def refused(path: Path, settings: Settings, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        read(path, settings)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def _changed(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: content | changes


def _without(part: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(content: dict[str, Any]) -> dict[str, Any]:
        state = {name: t for name, t in content["model_state_dict"].items() if part not in name}
        return content | {"model_state_dict": state}

    return change


def _with(tensor: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The third weight of the first network is another."""

    def change(content: dict[str, Any]) -> dict[str, Any]:
        state = dict(content["model_state_dict"])
        name = list(state)[2]
        return content | {"model_state_dict": state | {name: tensor(state[name])}}

    return change


BAD_CONTENT: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "no epoch": (lambda content: {key: value for key, value in content.items() if key != "epoch"}, "epoch: found None"),
    "epoch no number": (_changed(epoch="last"), "epoch: found 'last'"),
    "no networks": (lambda content: {"epoch": 1}, "no weights of network i2i .* found no tensors"),
    "network missing": (_without("cross_modality"), "no weights of network cross_registration"),
    "layer missing": (_without("i2i_unet.final_conv"), r"i2i: found \d+ layers with weights, expected"),
    "tensor missing": (_without("i2i_unet.final_conv.bias"), "found weight, expected weight, bias"),
    "network too many": (_changed(teacher_state_dict={"a.weight": torch.ones(1)}), "1 tensors too many .teacher"),
    "other shape": (_with(lambda tensor: tensor[:-1]), "i2i: initial_conv.conv2.weight: found shape"),
    "not finite": (_with(lambda tensor: tensor * float("nan")), "not finite"),
    "complex": (_with(lambda tensor: tensor.to(torch.complex64)), "complex64"),
    "whole numbers": (_with(lambda tensor: tensor.int()), "int32"),
    "no values": (_with(lambda tensor: tensor.to("meta")), "meta"),
    "sparse": (_with(lambda tensor: tensor.to_sparse()), "sparse"),
}


@pytest.mark.parametrize("kind", BAD_CONTENT)
def test_other_contents_end_in_one_line(kind: str, tmp_path: Path) -> None:
    settings, states, _ = of_method("nemar_equivariant", *CASES[0])
    change, complaint = BAD_CONTENT[kind]
    path = tmp_path / "weights.pt"
    torch.save(change({"epoch": 7, **states}), path)
    refused(path, settings, complaint)


def test_weights_of_another_experiment_are_refused(tmp_path: Path) -> None:
    file, dimensions = CASES[0]
    equivariant, states, _ = of_method("equivariant", file, dimensions)
    nemar, other, _ = of_method("nemar_equivariant", file, dimensions)
    without_d, alone, _ = supervised(adversary=False)
    path = saved(tmp_path / "weights.pt", **states)
    refused(path, nemar, "too many .*rigid_registration_encoder.* check --experiment golden")
    refused(path, without_d, "too many")
    refused(saved(path, **other), equivariant, "no weights of network rigid_registration")
    refused(saved(path, **alone), equivariant, "no weights of network i2i .i2i_unet., found model_state_dict")
    wider = {key: tuple(2 * width for width in widths) for key, widths in equivariant.features if widths}
    larger = equivariant.model_copy(update={"features": equivariant.features.model_copy(update=wider)})
    refused(saved(path, **states), larger, "i2i: initial_conv.conv1.weight: found shape .4, .* expected .8, ")


# The command


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(PARAMETERS, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_command(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = params.resolve(params.read(), "ixi-noreg")
    network = build_method(settings).networks["i2i"]
    saved(repository / "weights.pt", epoch=30, model_state_dict=network.state_dict())
    command = ["import-weights", "weights.pt", "--experiment", "ixi-noreg"]
    assert code(command) == 0
    printed = capsys.readouterr()
    assert printed.out == "models/ixi-noreg: i2i of epoch 30\n"
    assert "only prepared images: data/prepared/ixi/dataset.json: not found" in printed.err
    model = load_model(repository / "models/ixi-noreg", "cpu")
    assert model.description.preparation == {"kind": "ixi"}
    values = torch.from_numpy(np.random.RandomState(0).randn(1, 1, *settings.patch_size).astype(np.float32))
    with torch.no_grad():
        torch.testing.assert_close(model.predict(values), network(values))
    origin = json.loads((repository / "models/ixi-noreg/imported.json").read_text())
    assert (origin["file"], origin["epoch"]) == ("weights.pt", 30)

    assert code(command) == 2
    assert "models/ixi-noreg: exists" in capsys.readouterr().err
    assert code([*command, "--output", "other"]) == 0
    assert (repository / "other/model.json").is_file()
    assert code([*command, "--output", "third", "--scale", "paper"]) == 2
    assert "check --experiment ixi-noreg and --scale paper" in capsys.readouterr().err
    assert not (repository / "third").exists()


def code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    return int(caught.value.code or 0)


def test_the_table_names_all_networks_of_each_method() -> None:
    tree = params.read(PARAMETERS)
    examples = {entry["method"]: name for name, entry in tree["methods"].items()}
    assert set(NAMES) <= set(method_names())
    for method, names in NAMES.items():
        dataset = next(iter(tree["methods"][examples[method]].get("datasets", {"ixi": {}})))
        settings = params.resolve(tree, f"{dataset}-{examples[method]}", "demo")
        assert set(expected_states(settings)) | {"discriminator"} == set(names) | {"discriminator"}, method
