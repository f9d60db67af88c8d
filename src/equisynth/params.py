"""``params.yaml`` -> settings: dataset x method x scale x overrides, composed and never copied.

Layers, later ones win: ``datasets.<dataset>.training``, ``methods.<method>``, ``scales.<scale>.<dataset>.training``,
``pipeline.<experiment>.overrides``. Every error names the layer that set the key.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from equisynth.config import Data, Loss, Settings
from equisynth.errors import UserError
from equisynth.validation import FILE, origin, validate

Tree = dict[str, Any]
SECTIONS = (
    "scale", "seed", "sources", "datasets", "methods", "scales", "pipeline", "search", "evaluation", "registry",
)  # fmt: skip
DATASET_PARTS = ("layout", "data", "preparation", "training")
SCALE_PARTS = ("phantom", "data", "preparation", "training")


class NotApplicable(UserError):
    """A method or an experiment sets a width or weight of a network that its method lacks."""


class _UniqueKeys(yaml.SafeLoader):
    """YAML with a key stated twice is refused; PyYAML would take the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for index, key in enumerate(keys):
            if key in keys[:index] and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{key}' stands twice in one mapping", node.start_mark
                )
        return super().construct_mapping(node, deep)


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
        _keys(_mapping(dataset, f"datasets.{name}"), DATASET_PARTS, f"datasets.{name}", required=DATASET_PARTS)
    for scale, parts in tree["scales"].items():
        for name, part in _mapping(parts, f"scales.{scale}").items():
            where = f"scales.{scale}.{name}"
            _choice(name, tree["datasets"], f"scales.{scale}")
            _keys(_mapping(part, where), SCALE_PARTS, where)
    return tree


def resolve(tree: Tree, experiment: str, scale: str | None = None) -> Settings:
    """The settings of an experiment of ``pipeline``, or of any ``<dataset>-<method>`` that can be composed.

    Raises:
        UserError: unknown experiment, dataset, method or scale; a wrong key, type or range, with the layer that set it.
    """
    scale = tree["scale"] if scale is None else scale
    _choice(scale, tree["scales"], "scale")
    dataset, method, overrides = _parts(tree, experiment)
    layers: list[tuple[str, Any]] = [
        (f"datasets.{dataset}.training", tree["datasets"][dataset]["training"]),
        (f"methods.{method}", tree["methods"][method]),
        (f"scales.{scale}.{dataset}.training", _scale_part(tree, scale, dataset, "training")),
        (f"pipeline.{experiment}.overrides", overrides),
    ]
    for where, layer in layers:
        _mapping(layer, where)
    fields = {"experiment": experiment, "scale": scale, "seed": tree["seed"], "dataset": dataset}
    fields["data"] = data_settings(tree, dataset, scale).model_dump()
    composed = merge(*(layer for _, layer in layers))
    for key in fields:
        if key in composed and key != "seed":
            raise UserError(f"{FILE}: {origin([key], layers)}: cannot be set here; take it out")
    for where, layer in (layers[1], layers[3]):  # datasets and scales serve all methods
        _check_applicable(layer, where, composed)
    return validate(Settings, _only_applicable({**fields, **composed}), f"experiment {experiment}", layers)


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
                f"{FILE}: no experiment '{experiment}'; known: {', '.join(tree['pipeline'])}, "
                f"or <dataset>-<method> with datasets {', '.join(tree['datasets'])} "
                f"and methods {', '.join(tree['methods'])}"
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
    files = sorted(path.stem for path in (Path(__file__).parent / "methods").glob("*.py"))
    known = [stem for stem in files if stem not in ("__init__", "base", "parts")]
    where = f"methods.{name}"
    _choice(_mapping(tree["methods"][name], where).get("method"), known, f"{where}.method")


def _scale_part(tree: Tree, scale: str, dataset: str, part: str) -> Tree:
    return (tree["scales"][scale].get(dataset) or {}).get(part) or {}


def _only_applicable(fields: Tree) -> Tree:
    """Datasets state the widths and weights of every network; a method keeps those of the networks it has."""
    dropped = _not_applicable(fields)
    if fields.get("method") == "supervised":
        fields = {key: value for key, value in fields.items() if key != "rigidity"}
    for part, drop in dropped.items():
        if isinstance(fields.get(part), dict):
            fields = {**fields, part: {key: value for key, value in fields[part].items() if key not in drop}}
    return fields


def _check_applicable(layer: Tree, where: str, composed: Tree) -> None:
    for part, drop in _not_applicable(composed).items():
        own: Any = layer.get(part)
        for key in sorted(drop & set(own)) if isinstance(own, dict) else ():
            if own[key]:
                method, discriminator = composed.get("method"), composed.get("discriminator", "none")
                user = f"method '{method}' with discriminator '{discriminator}'"
                found = f"found {own[key]!r}, but {user} has no use for it; take it out"
                raise NotApplicable(f"{FILE}: {where}.{part}.{key}: {found}")


def _not_applicable(fields: Tree) -> dict[str, set[str]]:
    """Keys of ``features`` and of ``loss`` that belong to networks that the composed method lacks."""
    adversarial = fields.get("discriminator", "none") != "none"
    features = set() if adversarial else {"discriminator"}
    loss = set() if adversarial else {"discriminator", "adversarial"}
    if fields.get("method") == "supervised":
        features |= {"intra_modality_reg", "cross_modality_reg", "rigid_reg"}
        kept = {"similarity", "similarity_weight", "discriminator", "adversarial", "equivariant_adversarial"}
        loss |= set(Loss.model_fields) - kept
    else:
        loss |= {"similarity_weight"}
    return {"features": features, "loss": loss}


def _mapping(value: Any, where: str = "") -> Tree:
    if not isinstance(value, dict):
        found = "nothing" if value is None else f"{type(value).__name__} {value!r:.60}"
        raise UserError(f"{_at(where)}: found {found}, expected a mapping of keys to values")
    return value


def _keys(tree: Tree, known: tuple[str, ...], where: str = "", required: tuple[str, ...] = ()) -> None:
    for key in tree:
        if key not in known:
            raise UserError(f"{_at(where)}: unknown key '{key}'; known: {', '.join(known)}")
    for key in required:
        if key not in tree:
            raise UserError(f"{_at(where)}: key '{key}' is missing; add it")


def _choice(value: Any, known: Any, where: str) -> None:
    if not isinstance(value, str) or value not in known:
        raise UserError(f"{_at(where)}: found {value!r}, expected one of: {', '.join(map(str, known))}")


def _at(where: str) -> str:
    return f"{FILE}: {where}" if where else FILE
