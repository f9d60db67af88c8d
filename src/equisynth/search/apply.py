"""The best values of a search into params.yaml, comments and all else left as they are."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import yaml

from equisynth.errors import UserError
from equisynth.files import atomic_path
from equisynth.params import read, resolve
from equisynth.search.space import new_entry, override, shown

PATH = Path("params.yaml")


def apply(experiment: str, values: Mapping[str, Any], path: Path = PATH) -> str:
    """Writes dotted keys into the experiment's overrides, numbers with four digits.

    Returns:
        what changed, as a unified diff; empty if nothing did.

    Raises:
        UserError: the changed file would not say what it should; it stays as it is then.
    """
    text, tree = path.read_text(encoding="utf-8"), read(path)
    rounded = {key: float(shown(value)) if isinstance(value, float) else value for key, value in values.items()}
    wanted = override(tree, experiment, rounded)
    entry = None if experiment in tree["pipeline"] else new_entry(tree, experiment)
    changed = next((found for found in _edited(text, experiment, rounded, entry) if _says(found, wanted)), None)
    if changed is None:
        raise UserError(f"{path}: cannot be changed without changing more than pipeline.{experiment}; do it by hand")
    resolve(wanted, experiment)
    if changed != text:
        with atomic_path(path) as temporary:
            temporary.write_text(changed, encoding="utf-8")
    return diff(text, changed, path.name)


def diff(before: str, after: str, name: str) -> str:
    """As ``diff -u`` shows it, one line of context."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), name, name, n=1, lineterm="")
    return "\n".join(lines)


def _says(text: str, wanted: Mapping[str, Any]) -> bool:
    try:
        return bool(yaml.safe_load(text) == wanted)
    except yaml.YAMLError:
        return False


def _edited(text: str, experiment: str, values: Mapping[str, Any], entry: Mapping[str, Any] | None) -> tuple[str, str]:
    """The text with the values set: with all other lines as they were written, and written anew (comments are kept).

    Args:
        entry: of an experiment that ``pipeline`` does not have yet.
    """
    loader = _yaml()
    tree = loader.load(text)
    before = _dumped(loader, tree)
    if entry is not None:
        tree["pipeline"][experiment] = dict(entry)
    node = tree["pipeline"][experiment]
    if not node.get("overrides"):
        node["overrides"] = {}
    for key, value in values.items():
        _set(node["overrides"], key.split("."), loader.load(shown(value)) if isinstance(value, float) else value)
    after = _dumped(loader, tree)
    return _transferred(text, before, after), after


def _set(node: Any, path: list[str], value: Any) -> None:
    *parents, last = path
    for parent in parents:
        if not isinstance(node.get(parent), dict):
            node[parent] = {}
        node = node[parent]
    node[last] = value


def _transferred(text: str, before: str, after: str) -> str:
    """Applies the difference of two texts to one that differs from the first only in how its lines are written."""
    own, old, new = (part.splitlines(keepends=True) for part in (text, before, after))
    if len(own) != len(old):
        return after
    steps = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return "".join("".join(own[a:b] if tag == "equal" else new[c:d]) for tag, a, b, c, d in steps)


def _yaml() -> Any:
    from ruamel.yaml import YAML

    loader = YAML()
    loader.preserve_quotes = True
    loader.width = 100_000  # no line is broken that was not
    loader.indent(mapping=2, sequence=4, offset=2)
    return loader


def _dumped(loader: Any, tree: Any) -> str:
    buffer = StringIO()
    loader.dump(tree, buffer)
    return buffer.getvalue()
