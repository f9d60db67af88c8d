"""Writes docs/reference/commands.md and docs/reference/parameters.md from the code: `make reference`.

Commands come from the command line's own objects. Keys, kinds and defaults of params.yaml come from the models that
check it, meanings from their docstrings and the comments beside their fields; ``MEANINGS`` has words for the rest.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.models import ArgumentInfo, CommandInfo, OptionInfo

from equisynth import cli, layouts, params
from equisynth.champion import RegistrySettings
from equisynth.config import Data, Settings, Strict
from equisynth.evaluation.settings import EvaluationSettings
from equisynth.method_names import method_names
from equisynth.methods.base import method_class
from equisynth.search.settings import SearchSettings

FOLDER = Path(__file__).parents[1] / "docs/reference"
GENERATED = "<!-- Written by `make reference` from the code; do not edit by hand. -->"
COMPOSED = {"experiment", "scale", "dataset", "method", "data"}
"""Fields of the settings that follow from the experiment and cannot be set in `training`."""

SECTIONS = {
    "scale": "text; one of the names below `scales`: `demo` (minutes on two cores) or `paper` (as published)",
    "seed": "whole number ≥ 0; fixes patches, deformations, noise and initial weights",
    "sources": "where the raw data of each dataset come from",
    "datasets": "per dataset: what its images are, how they are prepared, how every experiment on it trains",
    "methods": "what tells the methods apart",
    "scales": "per scale and dataset: what differs there",
    "pipeline": "the experiments that `dvc repro` runs",
    "search": "what `equisynth search` tries, how, and for how long",
    "evaluation": "what is measured",
    "registry": "how the champion is chosen",
}
DATASET = {
    "layout": "kind of the raw data: a file in `src/equisynth/layouts`",
    "data": "what the prepared images are, [below](#datasetsdatasetdata)",
    "preparation": "its keys depend on the layout, [below](#datasetsdatasetpreparation)",
    "training": "of every experiment on the dataset, [below](#training)",
    "slices": "volumes only: what differs from `training` for methods that see volumes slice by slice",
}
SCALE = {
    "phantom": "joins `sources.<dataset>` where its kind is `phantom`",
    "data": "joins `datasets.<dataset>.data`",
    "preparation": "joins `datasets.<dataset>.preparation`",
    "training": "joins `datasets.<dataset>.training`",
    "slices": "joins `datasets.<dataset>.slices`",
}
METHOD = {
    "method": "a file in `src/equisynth/methods`",
    "datasets": "`<dataset>`: what the method changes there; which of them the paper reports",
    "scales": "`<scale>`: what the method changes there",
    "every key of `training`": "what the method changes everywhere, [below](#training)",
}
EXPERIMENT = {
    "dataset": "a name below `datasets`",
    "method": "a name below `methods`",
    "code": "`methods.<method>.method` again: DVC cannot look it up",
    "overrides": "keys of `training`; they win over all layers",
}
MEANINGS = {
    "Data.n_dims": "number of axes",
    "Data.voxel_size": "mm (pixels for pictures), one per axis",
    "Data.input": "what the input's values mean",
    "Data.label": "what the label's values mean",
    "Data.invalid_at_or_below": "a pixel none of whose channels exceeds it is invalid; null: none",
    "Data.licence": "of the data; every model that is trained on them carries it",
    "RandomTransformation.rotation_degrees": "[lower, upper], or such a range per axis",
    "RandomTransformation.log_scale_std": "standard deviation of the logarithm of the scale",
    "RandomTransformation.log_shear_std": "the same of the shear",
    "RandomTransformation.translation": "[lower, upper] in mm (pixels for pictures), or such a range per axis",
    "RandomTransformation.flips": "mirror along random axes",
    "RandomTransformation.right_angle_rotations": "rotate by random multiples of 90°",
    "MinValidRatio.input": "of the input's voxels; null: any",
    "MinValidRatio.label": "of the label's voxels; null: any",
    "Ranges.lower": "lower bounds",
    "Ranges.upper": "upper bounds, none below its lower one",
    "Features.discriminator": "of the discriminator",
    "Features.i2i": "of the network that translates",
    "Features.intra_modality_reg": "of the registration of the translated input to the label",
    "Features.cross_modality_reg": "of the registration of the label to the input",
    "Features.rigid_reg": "of the encoder that finds the rigid part",
    "LearningRate.generator": "of all networks but the discriminator",
    "LearningRate.discriminator": "of the discriminator",
    "Loss.similarity": "mean absolute or mean squared error",
    "Loss.similarity_weight": "of the similarity of output and label as they lie (`supervised`)",
    "Loss.cross_modality_similarity": "of the similarity after the cross-modality registration",
    "Loss.intra_modality_similarity": "of the similarity after the intra-modality registration",
    "Loss.rigid_similarity": "of the similarity after the rigid registration alone",
    "Loss.forward_rigidity": "of the rigidity penalty of the deformation",
    "Loss.inverse_rigidity": "of the rigidity penalty of its inverse",
    "Loss.commutation": "of the difference between translating a deformed input and deforming the translated one",
    "Loss.self_commutation": "the same with the predicted deformation in place of a random one",
    "Loss.discriminator": "of the discriminator's own loss",
    "Loss.adversarial": "of what the discriminator says of the output",
    "Loss.max_rotation_degrees": "limit of the rigid registration, per axis",
    "Loss.max_translation": "limit of the rigid registration, per axis; mm (pixels for pictures)",
    "Loss.equivariant_similarity": "true: the output of the deformed input, brought back, is fitted to the label; "
    "false or null: the output itself",
    "Loss.equivariant_adversarial": "show the discriminator outputs of deformed inputs",
    "RigidityCoefficient.values": "of the label, increasing",
    "RigidityCoefficient.coefficients": "weights there; between two values linear",
    "Rigidity.affinity_weight": "of second derivatives",
    "Rigidity.orthonormality_weight": "of the Jacobian's distance to a rotation",
    "Rigidity.properness_weight": "of the determinant's distance to 1",
    "Rigidity.first_derivatives_central": "central differences; else forward ones",
    "Rigidity.second_derivatives_central": "central differences; else forward ones",
    "Rigidity.coefficient": "local weight by the label's intensity; null: 1 everywhere",
    "Settings.seed": "instead of the seed of the file",
    "Settings.trains_on_label": "the label that training sees: `deformed`, `deformed on the fly`, `unregistered`, "
    "`rigidly registered`, `aligned`, `re-registered`, `registered` or `deformably registered`",
    "Settings.batch_size": "of all processes together; with a discriminator at least 2",
    "Settings.patch_size": "voxels, one per axis; whole halvings of it must fit the networks",
    "Settings.training_stride": "distance of training patches in voxels; null: the patch size",
    "Settings.inference_stride": "distance of tiles at inference, voxels, at most the patch size; null: the patch size",
    "Settings.fusing_mask_smoothing": "width of the soft border with which tiles are fused, voxels; null: none",
    "Settings.random_transformation": "r, with which the method asks for equivariance and augments",
    "Settings.input_noise_std_range": "[lower, upper] of the standard deviation of noise, normalised; null: none",
    "Settings.label_noise_std_range": "the same for the label",
    "Settings.paired": "false: input and label of a sample come from different cases",
    "Settings.min_valid_ratio": "smallest valid share of a training patch",
    "Settings.augment_with_random_transformation": "r deforms input and label alike, as augmentation",
    "Settings.label_deformation": "of labels made while training (`deformed on the fly`, pictures only)",
    "Settings.features": "widths per level of each network; null: the method has no such network",
    "Settings.normalization_groups": "of group normalisation; null: none. Divides every width but the first",
    "Settings.final_activation": "of the translating network",
    "Settings.epochs": "number of epochs; the best one on the validation split becomes the model",
    "Settings.epoch_steps": "batches per epoch; null: every patch once",
    "Settings.learning_rate": "of Adam",
    "Settings.loss": "weights of the terms (null or 0: not computed) and limits of the rigid transformation",
    "Settings.rigidity": "weights and finite differences of the rigidity penalty; null: the defaults below",
    "Settings.discriminator": "what it sees: input and image, or the image alone",
    "EvaluationSettings.fid": "Fréchet inception distance",
    "FidSettings.weights": "a file of pytorch-fid's Inception weights",
    "FidSettings.axes": "across which volumes are cut into slices",
    "RegisteredSettings.registration": "of the label, around a location",
    "LocalRegistration.rigid": "first step",
    "LocalRegistration.elastic": "second step: B-splines that keep bone rigid",
    "ElasticStep.bending_weight": "of the bending energy",
    "ElasticStep.rigidity_weight": "of the rigidity penalty in bone",
    "ElasticStep.linearity_weight": "of its part for affinity",
    "ElasticStep.orthonormality_weight": "of its part for orthonormality",
    "ElasticStep.properness_weight": "of its part for properness",
    "ElasticStep.step_size_samples": "from which elastix estimates its step size; null: its own choice",
    "FullValidSettings.registration": "of the label, affine, to each tile",
    "RigidStep.samples": "per iteration",
    "RigidStep.step_size_samples": "from which elastix estimates its step size; null: its own choice",
    "BSplineStep.samples": "per iteration",
    "BSplineStep.step_size_samples": "from which elastix estimates its step size; null: its own choice",
    "BSplineStep.bending_weight": "of the bending energy",
    "Registration.rigid": "first step",
    "Registration.bspline": "second step",
    "Deformation.velocity_mean_mm": "of the white noise, before smoothing; one per axis",
    "Deformation.smoothing_mm": "standard deviation of the smoothing",
    "Deformation.rotation_degrees": "[least, most] about each axis",
    "Deformation.translation_mm": "[least, most] along each axis",
    "IxiPreparation.seed": "a case's deformation follows from this and its name alone",
    "IxiPreparation.deformation": "the simulated misalignment of the label",
    "IxiPreparation.bias_correction": "N4, of each scan",
    "IxiPreparation.splits": "null: those that come with the raw data",
    "IxiPreparation.robex_path": "the ROBEX program (runROBEX.sh), which finds the brain; null: by morphology",
    "CermepPreparation.t1_threshold": "of the body in the T1",
    "CermepPreparation.t1_closing": "radius in voxels",
    "CermepPreparation.evaluation_dilation": "of the evaluation mask around the body; radius in voxels",
    "CermepPreparation.ct_threshold": "of the body in the CT, HU",
    "CermepPreparation.ct_closing": "radius in voxels",
    "CermepPreparation.registration": "of the CT to the T1, after the rigid one",
    "CermepPreparation.robex_path": "the ROBEX program (runROBEX.sh), which finds the brain; null: by morphology",
    "CermepPreparation.splits": "null: the published ones",
    "CocoPreparation.splits": "null: those that come with the raw data",
    "StainingPreparation.splits": "null: the published ones",
    "FolderPreparation.input": "how the input's values are scaled; null: kept",
    "FolderPreparation.label": "how the label's values are scaled; null: kept",
    "FolderPreparation.splits": "shares, or lists of cases",
    "Percentiles.percentiles": "of the foreground (what exceeds the lowest value): they become 0 and 1",
    "Limits.low": "becomes 0",
    "Limits.high": "becomes 1",
    "SplitLists.train": "names of cases",
    "SplitLists.validate_": "names of cases",
    "SplitLists.test": "names of cases",
    "SplitFractions.validate_": "share of the cases",
    "SplitFractions.test": "share of the cases; the others train",
    "SplitFractions.seed": "of the choice",
    "RemoteFile.url": "address",
    "RemoteFile.size": "bytes; checked where given",
    "RemoteFile.sha256": "checked where given",
    "IxiDownload.scans": "an archive per modality",
    "IxiDownload.splits": "lists of the published splits; null: none",
    "CocoDownload.pictures": "the archive",
    "CocoDownload.splits": "lists of the published splits; null: none",
    "SearchSettings.seed": "of the sampler",
    "Interval.low": "`[low, high]` is short for an interval on a log scale",
    "Interval.high": "above `low`",
    "Interval.log": "false: on a linear scale",
    "Choices.choices": "one of these values",
    "GanOptions.generator": "architecture of the translating network",
    "GanOptions.generator_width": "channels of its first level",
    "GanOptions.discriminator_width": "channels of its first level",
    "GanOptions.discriminator_layers": "of `n_layers`",
    "GanOptions.norm": "normalisation",
    "GanOptions.initialisation": "distribution of initial weights",
    "GanOptions.initialisation_gain": "its width",
    "GanOptions.dropout": "in the generator",
    "GanOptions.beta1": "of Adam",
    "GanOptions.decay_policy": "how the learning rate falls",
    "GanOptions.final_activation": "of the generator",
    "NemarOptions.adversarial_weight": "of the adversarial loss",
    "NemarOptions.reconstruction_weight": "of the similarity of both orders to the label",
    "NemarOptions.smoothness_weight": "of the deformation's smoothness",
    "Pix2PixOptions.l1_weight": "of the mean absolute error",
    "RegGanOptions.similarity_weight": "of the similarity after registration",
    "RegGanOptions.adversarial_weight": "of the adversarial loss",
    "RegGanOptions.smoothness_weight": "of the deformation's smoothness",
    "RegGanOptions.final_activation": "of the generator",
}
COMMON = {
    "kind": "of the source",
    "path": "of the data",
    "licence_accepted": "true: you have read and accept the data's licence; needed for a download",
    "cases": "phantoms per split",
    "incomplete_cases": "phantoms on top that lack a scan",
    "seed": "what is made follows from it",
    "iterations": "of the optimiser",
}
"""Meanings of keys that many models share, where neither the model nor ``MEANINGS`` has one."""


@dataclass(frozen=True)
class Row:
    """A line of a table of parameters."""

    key: str
    kind: str
    default: str
    meaning: str


# --- commands


def commands_page() -> str:
    """All commands with their arguments and options."""
    lines = [
        "# Commands", "", GENERATED, "",
        "Every command says `--help`. Mistakes end in one line and exit code 2, Ctrl-C in exit code 130.",
        "Stages are run by `dvc repro`, which knows what they depend on; called by hand they do the same.",
    ]  # fmt: skip
    panel = ""
    for name, command, below in _commands(cli.app):
        if below != panel:
            panel = below
            lines += ["", f"## {panel}"]
        lines += ["", *_command_lines(name, command.callback)]
    return "\n".join(lines) + "\n"


def _commands(app: typer.Typer, before: str = "", below: str = "") -> Iterator[tuple[str, CommandInfo, str]]:
    """Names ("predict", "proof page"), what typer was told of them, and the heading they stand below."""
    for command in app.registered_commands:
        if command.callback is not None:
            name = command.name or command.callback.__name__.replace("_", "-")
            yield before + name, command, below or str(command.rich_help_panel)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            inner = f"{before}{group.name} " if group.name else before
            yield from _commands(group.typer_instance, inner, str(group.rich_help_panel) if group.name else below)


def _command_lines(name: str, callback: Any) -> Iterator[str]:
    hints = get_type_hints(callback, include_extras=True)
    arguments: list[tuple[str, str]] = []
    options: list[tuple[str, str]] = []
    for key, parameter in inspect.signature(callback).parameters.items():
        kind, *extras = get_args(hints[key])
        info = next(extra for extra in extras if isinstance(extra, OptionInfo | ArgumentInfo))
        required = parameter.default is inspect.Parameter.empty
        is_list = any(get_origin(part) is list for part in (kind, *get_args(kind)))
        if isinstance(info, ArgumentInfo):
            word = key.upper() + ("..." if is_list else "")
            shown = word if required else f"[{word}]"
        else:
            named = [str(name) for name in (info.default, *(info.param_decls or ())) if str(name).startswith("--")]
            shown = ", ".join(named) or f"--{key.replace('_', '-')}"
        value = "" if kind is bool else kind_of(kind).removesuffix(", or null") + _least(info)
        unset = parameter.default is None or parameter.default is False
        default = "required" if required else "" if unset else f"`{parameter.default}`"
        environment = f" Environment: `{info.envvar}`." if info.envvar else ""
        row = f"| `{shown}` | {value} | {default} | {_cell(info.help or '')}{environment} |"
        (arguments if isinstance(info, ArgumentInfo) else options).append((shown, row))
    words = [shown for shown, _ in arguments] + (["[OPTIONS]"] if options else [])
    yield f"### equisynth {name}"
    yield ""
    yield f"`equisynth {' '.join([name, *words])}`"
    yield ""
    yield "\n\n".join(_visible(_one_line(part)) for part in (inspect.getdoc(callback) or "").split("\n\n"))
    if arguments or options:
        yield ""
        yield "| | value | default | |"
        yield "|---|---|---|---|"
        yield from (row for _, row in (*arguments, *options))


def _least(info: OptionInfo | ArgumentInfo) -> str:
    return f" ≥ {info.min:g}" if info.min is not None else ""


# --- parameters


def parameters_page() -> str:
    """All sections and keys of params.yaml."""
    _same(SECTIONS, params.SECTIONS)
    _same(DATASET, (*params.DATASET_PARTS, params.SLICES))
    _same(SCALE, (*params.SCALE_PARTS, params.SLICES))
    lines = [
        "# Parameters", "", GENERATED, "",
        "What `params.yaml` may hold. An experiment is composed of its layers: [experiments](../experiments.md);",
        "`equisynth resolve NAME` prints what it comes to. A wrong key, kind or range ends in one line that names it.",
        "The default is what holds where no layer sets the key, not what `params.yaml` says.",
        "", *_words(SECTIONS, "section"),
        "", "## sources.&lt;dataset&gt;",
        "", "Its `kind` says what else it holds.",
    ]  # fmt: skip
    for layout in _layouts():
        for kind, model in import_module(f"equisynth.layouts.{layout}").SOURCES.items():
            lines += ["", f"### sources: layout {layout}, kind {kind}", "", *_table(model)]
    lines += ["", "## datasets.&lt;dataset&gt;", "", *_words(DATASET, "key")]
    lines += ["", "### datasets.&lt;dataset&gt;.data", "", *_table(Data)]
    lines += ["", "### datasets.&lt;dataset&gt;.preparation"]
    for layout in _layouts():
        model = import_module(f"equisynth.layouts.{layout}").Preparation
        lines += ["", f"#### preparation: layout {layout}", "", *_table(model)]
    lines += ["", "## training", ""]
    lines += [
        "Keys of `datasets.<dataset>.training` and `.slices`, of `methods.<method>`, of the scales' parts of that name",
        "and of `pipeline.<name>.overrides`: one set, laid over each other.",
        "",
        *_table(Settings, leave_out=COMPOSED),
    ]
    lines += ["", "### training.network", "", "What only one method knows."]
    for name in method_names():
        options = method_class(name).Options
        if options.model_fields:
            lines += ["", f"#### network: method {name}", "", *_table(options)]
    lines += ["", "## methods.&lt;name&gt;", "", *_words(METHOD, "key")]
    lines += ["", "## scales.&lt;scale&gt;.&lt;dataset&gt;", "", *_words(SCALE, "key")]
    lines += ["", "## pipeline.&lt;experiment&gt;", "", *_words(EXPERIMENT, "key")]
    lines += ["", "## search", "", "How to: [tune an experiment](../how-to/tune.md).", "", *_table(SearchSettings)]
    lines += [
        "", "## evaluation", "",
        "`evaluation.scales.<scale>` holds the same keys: what differs there. See [evaluation](../evaluation.md).", "",
        *_table(EvaluationSettings),
    ]  # fmt: skip
    lines += ["", "## registry", "", *_table(RegistrySettings)]
    return "\n".join(lines) + "\n"


def rows(model: type[BaseModel], before: str = "", default: BaseModel | None = None) -> Iterator[Row]:
    """The keys of a model and of the models in it, dotted."""
    told = _told(model)
    for name, field in model.model_fields.items():
        key = f"{before}{field.alias or name}"
        found = getattr(default, name) if default is not None else field.get_default(call_default_factory=True)
        annotation = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        inner = list(_models(field.annotation))
        shown = _shown(found)
        yield Row(
            key, kind_of(annotation), "below" if isinstance(found, BaseModel) else shown, _meaning(model, name, told)
        )
        for candidate in inner:
            below = "<name>." if _is_mapping(field.annotation) else ""
            yield from rows(candidate, f"{key}.{below}", found if isinstance(found, candidate) else None)


def kind_of(annotation: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return kind_of(arguments[0]) + _limits(arguments[1:])
    if origin in (Union, types.UnionType):
        words = list(dict.fromkeys(kind_of(a) for a in arguments if a is not type(None)))
        return " or ".join(words) + (", or null" if type(None) in arguments else "")
    if origin is Literal:
        return " or ".join(f"`{_yaml(a)}`" for a in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {_many(kind_of(arguments[0]))}"
        same = len({kind_of(a) for a in arguments}) == 1
        return f"list of {len(arguments)} {_many(kind_of(arguments[0])) if same else 'values'}"
    if origin is list:
        return _many(kind_of(arguments[0]))
    if origin in (dict, Mapping):
        return "mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    if annotation is Any:
        return "anything"
    return {bool: "`true` or `false`", int: "whole number", float: "number", str: "text", Path: "path"}.get(
        annotation, getattr(annotation, "__name__", str(annotation))
    )


def _many(kind: str) -> str:
    if kind.startswith(("`", "list")):
        return kind.replace("list of", "lists of", 1)
    for one in ("whole number", "number", "mapping", "path"):
        if kind.startswith(one):
            return kind.replace(one, f"{one}s", 1)
    return {"text": "texts"}.get(kind, kind)


def _limits(metadata: tuple[Any, ...]) -> str:
    words = []
    for entry in metadata:
        for found in (entry, *getattr(entry, "metadata", ())):
            for kind, sign in ((Ge, "≥"), (Gt, ">"), (Le, "≤"), (Lt, "<")):
                if isinstance(found, kind):
                    (value,) = (
                        vars(found).values() if hasattr(found, "__dict__") else (getattr(found, kind.__name__.lower()),)
                    )
                    words.append(f"{sign} {value:g}")
    return f" {', '.join(words)}" if words else ""


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and not get_args(annotation):
        if issubclass(annotation, BaseModel):
            yield annotation
        return
    for argument in get_args(annotation):
        yield from _models(argument)


def _is_mapping(annotation: Any) -> bool:
    return get_origin(annotation) is dict or any(_is_mapping(argument) for argument in get_args(annotation))


def _shown(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, dict) and any(isinstance(entry, BaseModel) for entry in value.values()):
        return ", ".join(f"`{key}`" for key in value)
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_yaml(entry)}' for key, entry in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _meaning(model: type[BaseModel], name: str, told: dict[str, str]) -> str:
    """In this order: the model's docstring, the comment beside the field, the words above.

    Returns:
        Nothing where there are none.
    """
    stated = (MEANINGS.get(f"{parent.__name__}.{name}") for parent in model.__mro__)
    chosen = told.get(name) or next(filter(None, stated), None) or COMMON.get(name)
    if chosen is None:
        documented = [_one_line(inner.__doc__ or "") for inner in _models(model.model_fields[name].annotation)]
        chosen = " ".join(documented)
    return _cell(chosen or "")


@cache
def _told(model: type[BaseModel]) -> dict[str, str]:
    """Field -> its words in the section Attributes of the docstring, or in the comment behind it."""
    told: dict[str, str] = {}
    for parent in reversed(model.__mro__):
        if not issubclass(parent, Strict) or parent is Strict:
            continue
        source = textwrap.dedent(inspect.getsource(parent))
        comments = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT and not token.string.startswith("# fmt")
        }
        (body,) = ast.parse(source).body
        assert isinstance(body, ast.ClassDef)
        for node in body.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.end_lineno in comments:
                told[node.target.id] = comments[node.end_lineno]
        listed = (inspect.getdoc(parent) or "").partition("Attributes:\n")[2]
        for names, words in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", listed, re.MULTILINE):
            told |= dict.fromkeys(names.split(", "), _one_line(words))
    return told


def _table(model: type[BaseModel], leave_out: set[str] | frozenset[str] = frozenset()) -> list[str]:
    shown = [row for row in rows(model) if row.key.split(".")[0] not in leave_out]
    unexplained = [row.key for row in shown if not row.meaning]
    if unexplained:
        raise SystemExit(f"scripts/reference.py: say in MEANINGS what these of {model.__name__} mean: {unexplained}")
    head = _visible(_one_line((inspect.getdoc(model) or "").partition("Attributes:")[0]))
    explained = (Settings, Data, SearchSettings, EvaluationSettings, RegistrySettings)
    intro = [head, ""] if head and model not in explained else []
    return [
        *intro,
        "| key | kind | default | meaning |",
        "|---|---|---|---|",
        *(f"| `{row.key}` | {row.kind} | {row.default} | {row.meaning} |" for row in shown),
    ]


def _words(entries: dict[str, str], what: str) -> list[str]:
    return [
        f"| {what} | holds |",
        "|---|---|",
        *(f"| {f'`{key}`' if ' ' not in key else key} | {words} |" for key, words in entries.items()),
    ]


def _same(described: dict[str, str], known: tuple[str, ...]) -> None:
    if set(described) != set(known):
        raise SystemExit(f"scripts/reference.py: describes {sorted(described)}, params.py knows {sorted(known)}")


def _layouts() -> list[str]:
    return sorted({module.name for module in iter_modules(layouts.__path__)} - {"base"})


def _one_line(text: str) -> str:
    return " ".join(text.replace("``", "`").split())


def _cell(text: str) -> str:
    return _visible(_one_line(text).removesuffix(".")).replace("|", "\\|")


def _visible(text: str) -> str:
    """Names in angle brackets are no HTML."""
    parts = text.split("`")
    return "`".join(part if number % 2 else part.replace("<", "&lt;") for number, part in enumerate(parts))


def pages() -> dict[str, str]:
    """File name -> content."""
    return {"commands.md": commands_page(), "parameters.md": parameters_page()}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, content in pages().items():
        (FOLDER / name).write_text(content, encoding="utf-8")
        print(f"{FOLDER.name}/{name}")


if __name__ == "__main__":
    main()
