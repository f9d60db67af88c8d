"""``params.yaml`` -> settings: layers in their order, published experiments, and one line for every mistake."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from equisynth import params
from equisynth.config import Loss
from equisynth.errors import UserError
from equisynth.methods.base import method_class

HERE = Path(__file__).parent
EXPERIMENT = "ixi-eqsim_com_eqadv"
OURS = params.read(HERE.parent / "params.yaml")
REMOVED = object()


def tree() -> dict[str, Any]:
    """The repository's parameters with fixed demo numbers, free to change."""
    return copy.deepcopy(OURS)


def change(content: dict[str, Any], key: str, value: Any) -> None:
    """Sets a key given by its path with '/' between the parts (names may hold dots)."""
    *parents, last = key.split("/")
    for parent in parents:
        if not isinstance(content.get(parent), dict):
            content[parent] = {}
        content = content[parent]
    if value is REMOVED:
        del content[last]
    else:
        content[last] = value


def message(content: Mapping[str, Any], folder: Path, experiment: str = EXPERIMENT, scale: str | None = None) -> str:
    """What the user is told when such a file is read and an experiment of it resolved."""
    path = folder / "params.yaml"
    path.write_text(yaml.dump(dict(content), Dumper=yaml.CSafeDumper, sort_keys=False), encoding="utf-8")
    with pytest.raises(UserError) as raised:
        params.resolve(params.read(path), experiment, scale, lambda method: method_class(method).Options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def makes_pairs(dataset: str) -> bool:
    return bool(OURS["datasets"][dataset]["training"]["trains_on_label"] == "deformed on the fly")


@pytest.mark.parametrize(
    ("scale", "name"),
    [
        (scale, f"{dataset}-{method}")
        for scale, datasets in OURS["scales"].items()
        for dataset, method in itertools.product(datasets, OURS["methods"])
        if makes_pairs(dataset) == ("label_deformation" in OURS["methods"][method])
    ],
)
def test_every_method_resolves_at_every_scale(scale: str, name: str) -> None:
    settings = params.resolve(OURS, name, scale)
    assert (settings.scale, settings.experiment) == (scale, name)
    assert settings.method == OURS["methods"][name.partition("-")[2]]["method"]


@pytest.mark.parametrize("name", ["ixi-lr_eqsim_com", "coco-noreg"])
def test_deformations_of_labels_go_with_labels_deformed_on_the_fly(name: str, tmp_path: Path) -> None:
    said = message(OURS, tmp_path, name, "paper")
    assert "label_deformation" in said
    assert "'deformed on the fly'" in said


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("degree_range/upper", [1, 2], "as many values"),
        ("width_range", {"lower": [0, 0.1], "upper": [0.3, 0.3]}, "expected widths above 0"),
        ("centre_range", {"lower": [0, 0], "upper": [1, 1]}, "no such key here; known: width_range, magnitude_range"),
    ],
)
def test_wrong_deformations_of_labels_are_named(key: str, value: Any, expected: str, tmp_path: Path) -> None:
    content = tree()
    change(content, f"methods/lr_eqsim_com/label_deformation/{key}", value)
    said = message(content, tmp_path, "coco-lr_eqsim_com", "paper")
    assert "methods.lr_eqsim_com.label_deformation" in said
    assert expected in said


def test_supervised_settings_hold_nothing_of_the_registration_networks() -> None:
    settings = params.resolve(OURS, "ixi-noreg", "paper")
    assert settings.rigidity is None
    assert settings.features.model_dump(exclude_none=True) == {"i2i": (64, 128, 256, 512, 512)}
    given = settings.loss.model_dump(exclude_none=True)
    assert given == {"similarity": "mae", "similarity_weight": 1.0, "equivariant_adversarial": True}
    assert settings.learning_rate.generator == 2e-4


def test_later_layers_win() -> None:
    content = tree()
    content["scales"]["demo"]["ixi"]["training"].pop("epochs", None)
    order = [
        "datasets/ixi/training/epochs",
        "methods/eqsim_com_eqadv/epochs",
        "scales/demo/ixi/training/epochs",
        f"pipeline/{EXPERIMENT}/overrides/epochs",
    ]
    for epochs, key in enumerate(order, start=101):
        change(content, key, epochs)
        assert params.resolve(content, EXPERIMENT, "demo").epochs == epochs


def test_mappings_merge_and_lists_are_replaced() -> None:
    merged = params.merge({"a": {"b": 1, "c": [1, 2]}}, {"a": {"c": [3]}}, {"d": 4})
    assert merged == {"a": {"b": 1, "c": [3]}, "d": 4}


def test_merging_leaves_the_layers_as_they_are() -> None:
    content = tree()
    params.resolve(content, EXPERIMENT, "demo")
    params.source(content, "ixi", "demo")["kind"] = "changed"
    assert content == OURS


def test_null_takes_a_value_back() -> None:
    content = tree()
    change(content, f"pipeline/{EXPERIMENT}/overrides/input_noise_std_range", None)
    assert params.resolve(content, EXPERIMENT).input_noise_std_range is None


def test_source_and_preparation_are_those_of_the_scale() -> None:
    content = tree()
    change(content, "sources/ixi", {"kind": "phantom", "seed": 3})
    change(content, "scales/demo/ixi/phantom", {"seed": 4})
    change(content, "datasets/ixi/preparation", {"seed": 1, "deformation": {"smoothing": 10}})
    change(content, "scales/demo/ixi/preparation", {"deformation": {"smoothing": 5}})
    assert params.source(content, "ixi", "demo") == {"kind": "phantom", "seed": 4}
    change(content, "sources/ixi", {"kind": "path", "path": "scans"})
    assert params.source(content, "ixi", "demo") == {"kind": "path", "path": "scans"}
    assert params.preparation(content, "ixi", "demo") == {"seed": 1, "deformation": {"smoothing": 5}}
    assert params.preparation(content, "ixi", "paper")["deformation"] == {"smoothing": 10}


TRAINING = "datasets/ixi/training"
METHOD = "methods/eqsim_com_eqadv"
OVERRIDES = f"pipeline/{EXPERIMENT}/overrides"

# key, value, what the message must say: where, what was found, what was expected.
MISTAKES: list[tuple[str, Any, list[str]]] = [
    ("scale", "huge", ["scale", "'huge'", "demo", "paper"]),
    ("scale", 3, ["scale", "3", "demo", "paper"]),
    ("scale", REMOVED, ["'scale' is missing"]),
    ("seed", -1, ["seed", "-1", "at least 0"]),
    ("seed", "zero", ["seed", "'zero'", "whole number"]),
    ("seed", True, ["seed", "True", "whole number"]),
    ("colour", 1, ["unknown key 'colour'", "methods"]),
    ("methods", REMOVED, ["'methods' is missing"]),
    ("methods", ["a"], ["methods", "list", "mapping"]),
    ("datasets/ixi", None, ["datasets.ixi", "mapping"]),
    ("datasets/ixi/images", {}, ["datasets.ixi", "unknown key 'images'", "preparation"]),
    ("datasets/ixi/training", REMOVED, ["datasets.ixi", "'training' is missing"]),
    ("scales/demo/retina", {}, ["scales.demo", "'retina'", "ixi"]),
    ("scales/demo/ixi/epochs", 3, ["scales.demo.ixi", "unknown key 'epochs'", "training"]),
    (f"pipeline/{EXPERIMENT}/method", "eqsim", [f"pipeline.{EXPERIMENT}.method", "'eqsim'", "eqsim_com_eqadv"]),
    (f"pipeline/{EXPERIMENT}/code", "supervised", [f"pipeline.{EXPERIMENT}.code", "'supervised'", "equivariant"]),
    (f"pipeline/{EXPERIMENT}/dataset", "retina", [f"pipeline.{EXPERIMENT}.dataset", "'retina'", "ixi"]),
    (f"pipeline/{EXPERIMENT}/dataset", REMOVED, [f"pipeline.{EXPERIMENT}", "'dataset' is missing"]),
    (f"pipeline/{EXPERIMENT}/epochs", 3, [f"pipeline.{EXPERIMENT}", "unknown key 'epochs'", "overrides"]),
    (f"pipeline/{EXPERIMENT}/overrides", [1], ["overrides", "list", "mapping"]),
    ("datasets/ixi/data/n_dims", 4, ["datasets.ixi.data.n_dims", "found 4", "2 or 3"]),
    ("datasets/ixi/data/input/signal_range", -1, ["datasets.ixi.data.input.signal_range", "-1", "greater than 0"]),
    ("datasets/ixi/data/label/mean", [0, 0, 0], ["label", "3 values", "one per channel"]),
    ("datasets/ixi/data/label/clip", [6, 0], ["label.clip", "[6, 0]", "lower <= upper"]),
    ("datasets/ixi/data/label/colour", 1, ["datasets.ixi.data.label.colour", "no such key", "modality"]),
    ("datasets/ixi/data/licence", REMOVED, ["licence", "missing"]),
    (f"{TRAINING}/epochs", REMOVED, ["epochs", "missing"]),
    (f"{OVERRIDES}/epochs", 0, [f"pipeline.{EXPERIMENT}.overrides.epochs", "found 0", "greater than or equal to 1"]),
    (f"{OVERRIDES}/epochs", "many", [f"{EXPERIMENT}.overrides.epochs", "'many'", "whole number"]),
    (f"{OVERRIDES}/epochs", 2.5, [f"{EXPERIMENT}.overrides.epochs", "2.5", "whole number"]),
    (f"{OVERRIDES}/epoch", 2, [f"{EXPERIMENT}.overrides.epoch", "no such key", "epochs"]),
    (f"{METHOD}/los", {}, ["methods.eqsim_com_eqadv.los", "no such key", "loss"]),
    (f"{METHOD}/loss/comutation", 1.0, ["methods.eqsim_com_eqadv.loss.comutation", "no such key", "commutation"]),
    (
        f"{METHOD}/loss/commutation",
        -1,
        ["methods.eqsim_com_eqadv.loss.commutation", "-1", "greater than or equal to 0"],
    ),
    (f"{METHOD}/loss/commutation", float("nan"), ["methods.eqsim_com_eqadv.loss.commutation", "nan", "finite"]),
    (f"{METHOD}/loss/commutation", "high", ["methods.eqsim_com_eqadv.loss.commutation", "'high'", "number"]),
    (f"{METHOD}/loss/equivariant_similarity", "perhaps", ["loss.equivariant_similarity", "'perhaps'", "true or false"]),
    (f"{METHOD}/loss", [1], ["methods.eqsim_com_eqadv.loss", "[1]"]),
    (f"{METHOD}/discriminator", "sometimes", ["methods.eqsim_com_eqadv.discriminator", "'sometimes'", "conditional"]),
    (f"{METHOD}/experiment", "mine", ["methods.eqsim_com_eqadv.experiment", "cannot be set here"]),
    (f"{METHOD}/method", "guessing", ["methods.eqsim_com_eqadv.method", "'guessing'", "equivariant", "supervised"]),
    (f"{TRAINING}/trains_on_label", "straight", ["trains_on_label", "'straight'", "deformed", "aligned"]),
    (f"{TRAINING}/loss/similarity", "ssim", ["datasets.ixi.training.loss.similarity", "'ssim'", "'mae'", "'mse'"]),
    (f"{TRAINING}/min_valid_ratio/input", 1.5, ["datasets.ixi.training.min_valid_ratio.input", "1.5", "equal to 1"]),
    (f"{TRAINING}/features/i2i", REMOVED, ["features.i2i", "missing"]),
    (f"{OVERRIDES}/features/i2i", [], ["features.i2i", "at least 1"]),
    (
        f"{OVERRIDES}/features/i2i",
        [16, -2],
        [f"{EXPERIMENT}.overrides.features.i2i", "-2", "equal to 1"],
    ),
    (f"{OVERRIDES}/features/i2i", [16, 24], ["normalization_groups is 16", "24", "features.i2i"]),
    (f"{OVERRIDES}/normalization_groups", 0, [f"{EXPERIMENT}.overrides.normalization_groups", "found 0"]),
    (f"{OVERRIDES}/patch_size", [32, 32], ["patch_size", "2 values", "3"]),
    (f"{OVERRIDES}/patch_size", [32, 32, 34], ["patch_size is [32, 32, 34]", "divisible by"]),
    (f"{OVERRIDES}/patch_size", [32, 32, 0], [f"{EXPERIMENT}.overrides.patch_size", "found 0"]),
    (f"{OVERRIDES}/patch_size", 32, [f"{EXPERIMENT}.overrides.patch_size", "found 32"]),
    (f"{OVERRIDES}/training_stride", [4, 4], ["training_stride", "2 values", "3"]),
    (f"{OVERRIDES}/inference_stride", [200, 16, 16], ["inference_stride", "patch_size"]),
    (f"{OVERRIDES}/batch_size", 1, ["batch_size is 1", "at least 2"]),
    (f"{OVERRIDES}/learning_rate/generator", 0, [f"{EXPERIMENT}.overrides.learning_rate.generator", "found 0"]),
    (f"{OVERRIDES}/learning_rate/discriminator", None, ["learning_rate.discriminator", "needed"]),
    (f"{OVERRIDES}/input_noise_std_range", [0.2, 0.1], ["input_noise_std_range", "[0.2, 0.1]", "lower <= upper"]),
    (f"{OVERRIDES}/input_noise_std_range", [-0.1, 0.1], ["input_noise_std_range", "-0.1"]),
    (
        f"{OVERRIDES}/random_transformation/rotation_degrees",
        [[0, 1], [0, 1]],
        ["random_transformation", "rotation_degrees", "2", "3"],
    ),
    (f"{OVERRIDES}/random_transformation/translation", [8, -8], ["random_transformation", "translation", "lower"]),
    (f"{OVERRIDES}/random_transformation/flips", 2, [f"{EXPERIMENT}.overrides.random_transformation.flips", "found 2"]),
    (f"{OVERRIDES}/rigidity/coefficient", {"values": [0, 1], "coefficients": [1]}, ["coefficient", "same length"]),
    (f"{OVERRIDES}/rigidity/coefficient", {"values": [1, 0], "coefficients": [1, 2]}, ["coefficient", "increasing"]),
]


@pytest.mark.parametrize(("key", "value", "said"), MISTAKES, ids=[f"{key}={value!r:.20}" for key, value, _ in MISTAKES])
def test_mistakes_name_the_key_what_was_found_and_what_was_expected(
    key: str, value: Any, said: list[str], tmp_path: Path
) -> None:
    content = tree()
    change(content, key, value)
    told = message(content, tmp_path, scale=None if key == "scale" else "paper")
    for part in said:
        assert part in told


# experiment, key, value, what the message must say: parts for one dataset, one scale, slices, a method's own options.
PARTS: list[tuple[str, str, Any, list[str]]] = [
    ("ixi-pix2pix", "datasets/ixi/slices", REMOVED, ["datasets.ixi", "'slices' is missing", "'pix2pix'", "patch_size"]),
    ("ixi-pix2pix", "datasets/ixi/slices", [1], ["datasets.ixi.slices", "list", "mapping"]),
    ("ixi-pix2pix", "datasets/ixi/slices/patchsize", [9, 9, 1], ["datasets.ixi.slices.patchsize", "no such key"]),
    (
        "ixi-pix2pix",
        "datasets/ixi/slices/patch_size",
        [64, 64, 2],
        ["[64, 64, 2]", "last entry of 1"],
    ),
    ("ixi-pix2pix", "datasets/ixi/slice", {}, ["datasets.ixi", "unknown key 'slice'", "slices"]),
    ("ixi-pix2pix", "scales/paper/ixi/slices", {"epoch": 1}, ["scales.paper.ixi.slices.epoch", "no such key"]),
    ("coco-lr_eqsim", "datasets/coco/slices", {}, ["datasets.coco.slices", "two axes", "take it out"]),
    ("ixi-pix2pix", "methods/pix2pix/slices", "yes", ["methods.pix2pix.slices", "'yes'"]),
    ("ixi-pix2pix", "methods/pix2pix/datasets", ["ixi"], ["methods.pix2pix.datasets", "list", "mapping"]),
    ("ixi-pix2pix", "methods/pix2pix/datasets/ixi", [1], ["methods.pix2pix.datasets.ixi", "list", "mapping"]),
    ("ixi-pix2pix", "methods/pix2pix/datasets/ixii", {}, ["methods.pix2pix.datasets", "'ixii'", "'ixi'?"]),
    ("ixi-pix2pix", "methods/pix2pix/datasets/ixi/epoch", 3, ["methods.pix2pix.datasets.ixi.epoch", "no such key"]),
    ("ixi-pix2pix", "methods/pix2pix/datasets/ixi/method", "nemar", ["datasets.ixi.method", "cannot be set here"]),
    ("ixi-pix2pix", "methods/pix2pix/scales/huge", {}, ["methods.pix2pix.scales", "'huge'", "demo"]),
    ("ixi-pix2pix", "methods/pix2pix/scales/paper", {"epochs": 0}, ["methods.pix2pix.scales.paper.epochs", "found 0"]),
    ("ixi-pix2pix", "methods/pix2pix/network/l2_weight", 1, ["methods.pix2pix.network.l2_weight", "l1_weight"]),
    ("ixi-pix2pix", "methods/pix2pix/network/l1_weight", -1, ["methods.pix2pix.network.l1_weight", "found -1"]),
    ("ixi-pix2pix", "methods/pix2pix/network", [1], ["methods.pix2pix.network", "[1]"]),
    (
        "staining-pix2pix",
        "methods/pix2pix/datasets/staining/network/generator",
        "unet",
        ["methods.pix2pix.datasets.staining.network.generator", "'unet'", "unet_512"],
    ),
    ("ixi-pix2pix", "methods/pix2pix/loss", {"commutation": 1}, ["methods.pix2pix.loss", "'pix2pix'", "no use for it"]),
    ("ixi-noreg", "methods/noreg/rigidity", {"affinity_weight": 1}, ["methods.noreg.rigidity", "no use for it"]),
    ("ixi-noreg", "methods/noreg/network", {"generator": 1}, ["methods.noreg.network", "no use for it"]),
    (
        "ixi-noreg",
        "methods/noreg/datasets/ixi",
        {"loss": {"commutation": 1}},
        ["methods.noreg.datasets.ixi.loss.commutation", "no use for it"],
    ),
]


@pytest.mark.parametrize(
    ("experiment", "key", "value", "said"), PARTS, ids=[f"{key}={value!r:.20}" for _, key, value, _ in PARTS]
)
def test_mistakes_in_parts_name_the_layer(
    experiment: str, key: str, value: Any, said: list[str], tmp_path: Path
) -> None:
    content = tree()
    change(content, key, value)
    told = message(content, tmp_path, experiment, "paper")
    for part in said:
        assert part in told


def test_parts_of_datasets_that_were_taken_out_may_stay() -> None:
    content = tree()
    for scale in content["scales"].values():
        del scale["staining"]
    for section in ("sources", "datasets"):
        del content[section]["staining"]
    del content["pipeline"]["staining-eqsim_com_eqadv"]
    assert params.resolve(content, "ixi-pix2pix", "paper").slices
    assert not any(name.startswith("staining") for name in params.published(content))


def test_pictures_have_no_slices() -> None:
    """A method that works on slices takes pictures as they are."""
    settings = params.resolve(OURS, "staining-pix2pix", "paper")
    assert not settings.slices
    assert settings.patch_size == (512, 512)


def test_own_networks_leave_nothing_of_ours() -> None:
    settings = params.resolve(OURS, "ixi-pix2pix", "demo")
    assert settings.features.model_dump(exclude_none=True) == {}
    assert settings.loss == Loss()
    assert settings.rigidity is None
    assert settings.learning_rate.discriminator is None
    assert settings.network["generator_width"] == 8


def test_later_layers_of_a_method_on_slices_win() -> None:
    content = tree()
    order = [
        "datasets/ixi/training/epochs",
        "datasets/ixi/slices/epochs",
        "methods/pix2pix/epochs",
        "methods/pix2pix/datasets/ixi/epochs",
        "scales/demo/ixi/training/epochs",
        "scales/demo/ixi/slices/epochs",
        "methods/pix2pix/scales/demo/epochs",
        "pipeline/ixi-pix2pix/overrides/epochs",
    ]
    change(content, "pipeline/ixi-pix2pix", {"dataset": "ixi", "method": "pix2pix", "code": "pix2pix"})
    del content["datasets"]["ixi"]["slices"]["epochs"], content["scales"]["demo"]["ixi"]["training"]["epochs"]
    for epochs, key in enumerate(order, start=101):
        change(content, key, epochs)
        assert params.resolve(content, "ixi-pix2pix", "demo").epochs == epochs


def test_unknown_experiment_lists_what_there_is(tmp_path: Path) -> None:
    told = message(tree(), tmp_path, experiment="ixi-nothing")
    assert "ixi-nothing" in told
    assert EXPERIMENT in told
    assert "noreg" in told


def test_unknown_scale_lists_what_there_is(tmp_path: Path) -> None:
    assert "demo, paper" in message(tree(), tmp_path, scale="huge").replace("paper, demo", "demo, paper")


def test_scale_without_the_dataset_keeps_the_datasets_own_values() -> None:
    content = tree()
    content["scales"]["plain"] = {}
    assert params.resolve(content, EXPERIMENT, "plain").patch_size == (64, 64, 64)


@pytest.mark.parametrize(
    ("text", "said"), [("a: [", "not valid YAML"), ("- 1\n", "expected a mapping"), ("", "expected a mapping")]
)
def test_files_that_are_no_parameters(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=said) as raised:
        params.read(path)
    assert "\n" not in str(raised.value)


def test_absent_file_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="params.yaml: not found"):
        params.read(tmp_path / "params.yaml")


def test_duplicate_keys_are_refused(tmp_path: Path) -> None:
    """YAML would silently take the last one."""
    path = tmp_path / "params.yaml"
    text = (HERE.parent / "params.yaml").read_text(encoding="utf-8")
    path.write_text(text + "\nseed: 7\n", encoding="utf-8")
    with pytest.raises(UserError, match="seed"):
        params.read(path)
