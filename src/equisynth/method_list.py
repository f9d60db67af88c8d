"""What `equisynth methods` prints: each method's file, what it says of itself, and where it is published."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from equisynth.errors import UserError
from equisynth.method_names import method_names
from equisynth.params import Tree


def overview(tree: Tree) -> str:
    """All methods: name of the file, first line and source, and the entries of params.yaml with their datasets."""
    return "\n\n".join("\n".join(_lines(tree, code)) for code in method_names())


def details(tree: Tree, name: str) -> str:
    """One method, by its file or an entry of params.yaml, with all it says and its own options.

    Raises:
        UserError: there is neither.
    """
    entry = tree["methods"].get(name)
    code = name if name in method_names() else entry.get("method") if isinstance(entry, dict) else None
    if code not in method_names():
        known = ", ".join([*method_names(), *tree["methods"]])
        raise UserError(f"methods: found '{name}', expected one of: {known}")
    options = [f"  {line}" for line in _options(code)]
    own = ["", "Options, below `network` (published name):", *options] if options else []
    return "\n".join([_text(code), "", *_entries(tree, code), *own])


def _lines(tree: Tree, code: str) -> Iterator[str]:
    first, *rest = _text(code).split("\n\n")
    yield code
    yield f"  {_joined(first)}"
    if rest and "*" in rest[0]:  # a title: where the method comes from
        yield f"  {_joined(rest[0])}"
    yield from _entries(tree, code)


def _entries(tree: Tree, code: str) -> Iterator[str]:
    for name, entry in tree["methods"].items():
        if entry.get("method") == code:
            published = [dataset for dataset in tree["datasets"] if dataset in (entry.get("datasets") or {})]
            yield f"    {name:<55} {', '.join(published) or '-'}"


def _options(code: str) -> Iterator[str]:
    from equisynth.methods.base import method_class

    for name, field in method_class(code).Options.model_fields.items():
        alias = f" ({field.serialization_alias})" if field.serialization_alias else ""
        yield f"{name}{alias}: {_kind(field.annotation)}, default {field.default}"


def _kind(annotation: Any) -> str:
    choices = getattr(annotation, "__args__", None)
    if choices and all(isinstance(choice, str) for choice in choices):
        return " | ".join(choices)
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _text(code: str) -> str:
    path = Path(__file__).parent / "methods" / f"{code}.py"
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "(its file says nothing)"


def _joined(paragraph: str) -> str:
    return " ".join(paragraph.split())
