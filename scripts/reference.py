"""Writes docs/reference/commands.md and docs/reference/parameters.md from the code: `make reference`.

Commands come from the command line's own objects. Keys, kinds and defaults of params.yaml come from the models that
check it, meanings from their docstrings and the comments beside their fields.
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
COMMON = {
    "kind": "of the source",
    "path": "of the data",
    "licence_accepted": "true: you have read and accept the data's licence; needed for a download",
    "cases": "phantoms per split",
    "incomplete_cases": "phantoms on top that lack a scan",
    "seed": "what is made follows from it",
    "iterations": "of the optimiser",
}
"""Meanings of keys that many models share, where the model has none."""


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
    """In this order: the model's docstring, the comment beside the field, `COMMON`, what the field's own model is.

    Returns:
        Nothing where there are none.
    """
    chosen = told.get(name) or COMMON.get(name)
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
        raise SystemExit(
            f"{inspect.getsourcefile(model)}: {model.__name__}: say in its docstring or behind the fields what these "
            f"mean: {', '.join(unexplained)}"
        )
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
