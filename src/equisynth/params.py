"""``params.yaml`` -> settings: dataset x method x scale x overrides, composed and never copied.

Layers, later ones win (``_layers``): what the dataset says for all methods, the method and its part for the dataset,
what the scale says for the dataset, the method's part for the scale, the experiment's overrides. Methods that work on
slices take the parts ``slices`` too where the dataset has three axes. Every error names the layer that set the key.
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from equisynth.config import Data, Settings
from equisynth.errors import UserError, one_of
from equisynth.method_names import method_names
from equisynth.method_uses import USES, stated, unused, without
from equisynth.validation import FILE, origin, validate

Tree = dict[str, Any]
SECTIONS = (
    "scale", "seed", "sources", "datasets", "methods", "scales", "pipeline", "search", "evaluation", "registry",
)  # fmt: skip
DATASET_PARTS = ("layout", "data", "preparation", "training")
SCALE_PARTS = ("phantom", "data", "preparation", "training")
SLICES = "slices"  # part of datasets and of scales; of methods a switch
METHOD_PARTS = ("datasets", "scales")
Options = Callable[[str], type[BaseModel]]
Layer = tuple[str, Tree]


class NotApplicable(UserError):
    """A method or an experiment sets a width or weight of a network that its method lacks."""


_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, where it was built: ten times as fast


class _UniqueKeys(_Loader):  # type: ignore[misc]
    """YAML with a key stated twice is refused; PyYAML would take the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for index, key in enumerate(keys):
            if key in keys[:index] and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key}' stands twice in one mapping", node.start_mark
                )
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def read(path: Path | str = "params.yaml") -> Tree:
    """The parameters as a tree, with their top two levels checked.

    Raises:
        UserError: no such file, not YAML, an unknown or missing section.
    """
    path = Path(path)
    try:
        tree: Tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except FileNotFoundError:
        raise UserError(f"{path}: not found in {Path.cwd()}; run from the top of the repository") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, expected a file of parameters; move it away") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: is not valid YAML ({reason}); mend the file") from None
    _keys(_mapping(tree), SECTIONS, required=SECTIONS)
    for section in SECTIONS[2:]:
        _mapping(tree[section], section)
    _choice(tree["scale"], tree["scales"], "scale")
    if not isinstance(tree["seed"], int) or isinstance(tree["seed"], bool) or tree["seed"] < 0:
        raise UserError(f"{FILE}: seed: found {tree['seed']!r}, expected a whole number of at least 0")
    for name, dataset in tree["datasets"].items():
        known = (*DATASET_PARTS, SLICES)
        _keys(_mapping(dataset, f"datasets.{name}"), known, f"datasets.{name}", required=DATASET_PARTS)
    for scale, parts in tree["scales"].items():
        for name, part in _mapping(parts, f"scales.{scale}").items():
            where = f"scales.{scale}.{name}"
            _choice(name, tree["datasets"], f"scales.{scale}")
            _keys(_mapping(part, where), (*SCALE_PARTS, SLICES), where)
    for name, method in tree["methods"].items():
        _check_method(tree, _mapping(method, f"methods.{name}"), f"methods.{name}")
    return tree


def resolve(tree: Tree, experiment: str, scale: str | None = None, options: Options | None = None) -> Settings:
    """The settings of an experiment of ``pipeline``, or of any ``<dataset>-<method>`` that can be composed.

    Args:
        options: method -> model of what ``network`` may hold, to check it too (a method knows it by itself, but not
            which layer set a key).

    Raises:
        UserError: unknown experiment, dataset, method or scale; a wrong key, type or range, with the layer that set it.
    """
    scale = tree["scale"] if scale is None else scale
    _choice(scale, tree["scales"], "scale")
    dataset, method, _ = _parts(tree, experiment)
    data = data_settings(tree, dataset, scale)
    layers, owners = _layers(tree, experiment, scale, data.n_dims)
    fields = {"experiment": experiment, "scale": scale, "seed": tree["seed"], "dataset": dataset}
    fields["data"] = data.model_dump()
    composed = merge(*(layer for _, layer in layers))
    for key in fields:
        if key in composed and key != "seed":
            raise UserError(f"{FILE}: {origin([key], layers)}: cannot be set here; take it out")
    for where, layer in layers:
        if "method" in layer and where != f"methods.{method}":
            raise UserError(f"{FILE}: {where}.method: cannot be set here; take it out")
    for where, layer in owners:  # datasets and scales serve all methods
        _check_applicable(layer, where, composed)
    if options is not None and "network" in composed:
        inner = [
            (f"{where}.network", _mapping(layer["network"], f"{where}.network"))
            for where, layer in layers
            if "network" in layer
        ]
        validate(options(composed["method"]), composed["network"], f"experiment {experiment}", inner)
    if composed.get(SLICES) is True and data.n_dims == 2:
        composed[SLICES] = False
    kept = without({**fields, **composed}, unused(composed))
    return validate(Settings, kept, f"experiment {experiment}", layers)


def published(tree: Tree) -> dict[str, tuple[str, str]]:
    """The experiments that the methods' ``datasets`` name: ``<dataset>-<method>`` -> (dataset, method)."""
    return {
        f"{dataset}-{method}": (dataset, method)
        for dataset in tree["datasets"]
        for method, entry in tree["methods"].items()
        if dataset in (entry.get("datasets") or {})
    }


def dataset_of(tree: Tree, experiment: str) -> str:
    """The dataset of an experiment."""
    return _parts(tree, experiment)[0]


def data_settings(tree: Tree, dataset: str, scale: str | None = None) -> Data:
    """What the images of a dataset are at a scale."""
    scale = tree["scale"] if scale is None else scale
    _choice(dataset, tree["datasets"], "datasets")
    layers = [
        (f"datasets.{dataset}.data", tree["datasets"][dataset]["data"]),
        (f"scales.{scale}.{dataset}.data", _scale_part(tree, scale, dataset, "data")),
    ]
    return validate(Data, merge(*(layer for _, layer in layers)), f"dataset {dataset}", layers)


def source(tree: Tree, dataset: str, scale: str | None = None) -> Tree:
    """Parameters of a raw source (checked by the dataset's own model); a scale says how large phantoms are."""
    scale = tree["scale"] if scale is None else scale
    _choice(dataset, tree["sources"], "sources")
    chosen = _mapping(tree["sources"][dataset], f"sources.{dataset}")
    return merge(chosen, _scale_part(tree, scale, dataset, "phantom") if chosen.get("kind") == "phantom" else {})


def layout_of(tree: Tree, dataset: str) -> str:
    """The kind of a dataset's raw data: the name of a module in ``equisynth/layouts``."""
    _choice(dataset, tree["datasets"], "datasets")
    return str(tree["datasets"][dataset]["layout"])


def preparation(tree: Tree, dataset: str, scale: str | None = None) -> Tree:
    """Parameters of a dataset's preparation at a scale (checked by the dataset's own model)."""
    scale = tree["scale"] if scale is None else scale
    _choice(dataset, tree["datasets"], "datasets")
    return merge(tree["datasets"][dataset]["preparation"], _scale_part(tree, scale, dataset, "preparation"))


def merge(*layers: Tree) -> Tree:
    """Deep merge of mappings, later layers win; anything that is not a mapping is replaced whole."""
    result: Tree = {}
    for layer in layers:
        for key, value in layer.items():
            old = result.get(key)
            result[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _parts(tree: Tree, experiment: str) -> tuple[str, str, Tree]:
    entry = tree["pipeline"].get(experiment)
    if entry is None:
        dataset, _, method = experiment.partition("-")
        if dataset not in tree["datasets"] or method not in tree["methods"]:
            raise UserError(
                f"{FILE}: no experiment '{experiment}'; known: {one_of(experiment, tree['pipeline'])}, "
                f"or <dataset>-<method> with datasets {one_of(dataset, tree['datasets'])} "
                f"and methods {one_of(method, tree['methods'])} (all: equisynth methods)"
            )
        _known_method(tree, method)
        return dataset, method, {}
    where = f"pipeline.{experiment}"
    required = ("dataset", "method", "code")
    _keys(_mapping(entry, where), (*required, "overrides"), where, required)
    _choice(entry["dataset"], tree["datasets"], f"{where}.dataset")
    _choice(entry["method"], tree["methods"], f"{where}.method")
    _known_method(tree, entry["method"])
    code = _mapping(tree["methods"][entry["method"]], f"methods.{entry['method']}").get("method")
    if entry["code"] != code:  # DVC cannot look it up by itself, see dvc.yaml
        expected = f"{code!r} as methods.{entry['method']}.method says"
        raise UserError(f"{FILE}: {where}.code: found {entry['code']!r}, expected {expected}")
    return entry["dataset"], entry["method"], entry.get("overrides") or {}


def _known_method(tree: Tree, name: str) -> None:
    """A method is a file: the settings name it, nothing else does."""
    where = f"methods.{name}"
    _choice(_mapping(tree["methods"][name], where).get("method"), method_names(), f"{where}.method")


def _scale_part(tree: Tree, scale: str, dataset: str, part: str) -> Tree:
    return (tree["scales"][scale].get(dataset) or {}).get(part) or {}


def _layers(tree: Tree, experiment: str, scale: str, n_dims: int) -> tuple[list[Layer], list[Layer]]:
    """What an experiment is composed of, later ones winning; and those of them that serve its method alone."""
    dataset, method, overrides = _parts(tree, experiment)
    entry = tree["methods"][method]
    own = {key: value for key, value in entry.items() if key not in METHOD_PARTS}
    name = f"methods.{method}"
    here: list[Layer] = [(name, own), (f"{name}.datasets.{dataset}", (entry.get("datasets") or {}).get(dataset) or {})]
    last: list[Layer] = [
        (f"{name}.scales.{scale}", (entry.get("scales") or {}).get(scale) or {}),
        (f"pipeline.{experiment}.overrides", overrides),
    ]
    owners = [*here, *last]
    for where, layer in owners:
        if not isinstance(_mapping(layer, where).get(SLICES, False), bool):
            raise UserError(f"{FILE}: {where}.{SLICES}: found {layer[SLICES]!r}, expected true or false")
    general: list[Layer] = [(f"datasets.{dataset}.training", tree["datasets"][dataset]["training"])]
    at_scale: list[Layer] = [(f"scales.{scale}.{dataset}.training", _scale_part(tree, scale, dataset, "training"))]
    if n_dims == 3 and merge(*(layer for _, layer in owners)).get(SLICES) is True:
        if SLICES not in tree["datasets"][dataset]:
            raise UserError(
                f"{FILE}: datasets.{dataset}: key '{SLICES}' is missing; method '{method}' works on slices of volumes, "
                "so add what it changes in training, with a patch_size that ends with 1"
            )
        general.append((f"datasets.{dataset}.{SLICES}", tree["datasets"][dataset][SLICES]))
        at_scale.append((f"scales.{scale}.{dataset}.{SLICES}", _scale_part(tree, scale, dataset, SLICES)))
    elif n_dims == 2 and SLICES in tree["datasets"][dataset]:
        raise UserError(f"{FILE}: datasets.{dataset}.{SLICES}: a dataset of two axes has no slices; take it out")
    for where, layer in (*general, *at_scale):
        _mapping(layer, where)
    return [*general, *here, *at_scale, *last], owners


def _check_method(tree: Tree, entry: Tree, where: str) -> None:
    """Its parts for datasets and scales: those of a dataset that was taken out of the file may stay."""
    for dataset, part in _mapping(entry.get("datasets") or {}, f"{where}.datasets").items():
        _mapping(part, f"{where}.datasets.{dataset}")
        meant = [] if dataset in tree["datasets"] else get_close_matches(str(dataset), tree["datasets"], 1, 0.8)
        if meant:
            raise UserError(f"{FILE}: {where}.datasets: found '{dataset}', expected a dataset: '{meant[0]}'?")
    for scale, part in _mapping(entry.get("scales") or {}, f"{where}.scales").items():
        _choice(scale, tree["scales"], f"{where}.scales")
        _mapping(part, f"{where}.scales.{scale}")


def _check_applicable(layer: Tree, where: str, composed: Tree) -> None:
    method, discriminator = composed.get("method"), composed.get("discriminator", "none")
    user = f"method '{method}' with " + (
        f"discriminator '{discriminator}'" if method in USES else "networks of its own (key network)"
    )
    for key, value in stated(layer, unused(composed)):
        raise NotApplicable(f"{FILE}: {where}.{key}: found {value!r}, but {user} has no use for it; take it out")


def _mapping(value: Any, where: str = "") -> Tree:
    if not isinstance(value, dict):
        found = "nothing" if value is None else f"{type(value).__name__} {value!r:.60}"
        raise UserError(f"{_at(where)}: found {found}, expected a mapping of keys to values")
    return value


def _keys(tree: Tree, known: tuple[str, ...], where: str = "", required: tuple[str, ...] = ()) -> None:
    for key in tree:
        if key not in known:
            raise UserError(f"{_at(where)}: unknown key '{key}'; known: {one_of(key, known)}")
    for key in required:
        if key not in tree:
            raise UserError(f"{_at(where)}: key '{key}' is missing; add it")


def _choice(value: Any, known: Any, where: str) -> None:
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{_at(where)}: found {value!r}, expected one of: {one_of(value, known)}")


def _at(where: str) -> str:
    return f"{FILE}: {where}" if where else FILE
