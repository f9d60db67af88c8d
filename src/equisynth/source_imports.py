"""Which of our modules a source file imports, read from its syntax tree: nothing is run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).parent.parent
PACKAGE = __name__.partition(".")[0]


class Imported(NamedTuple):
    """One imported module; ``name`` ends with ``.*`` where ``import_module(f"a.{b}")`` decides at run time."""

    name: str
    in_function: bool


def module_name(path: Path) -> str:
    """``src/equisynth/a/b.py`` -> ``equisynth.a.b``; a package's ``__init__`` keeps that part."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def module_file(name: str) -> Path:
    """``equisynth.a.b`` -> ``src/equisynth/a/b.py``."""
    return SOURCE.joinpath(*name.split(".")).with_suffix(".py")


@cache
def imports(path: Path) -> frozenset[Imported]:
    """Everything the file imports, inside functions too, except for the type checker only."""
    return imports_of(ast.parse(path.read_text(encoding="utf-8")))


def imports_of(node: ast.AST) -> frozenset[Imported]:
    """Everything a piece of source imports."""
    return frozenset(_walk(node, in_function=False))


def ours(path: Path) -> set[str]:
    """The modules of the package that the file imports; those chosen at run time end with ``.*``."""
    return {found.name for found in imports(path) if found.name.split(".")[0] == PACKAGE}


def reachable(start: Path, chosen: dict[str, str]) -> set[Path]:
    """``start`` and the files that it imports, directly or not; ``__init__`` files (docstrings only) left out.

    Args:
        chosen: what a name known at run time only stands for, e.g. ``{"equisynth.methods.*": "equisynth.methods.a"}``.
    """
    found, open_files = set(), [start]
    while open_files:
        path = open_files.pop()
        if path in found:
            continue
        found.add(path)
        for name in ours(path):
            target = module_file(chosen[name] if name.endswith(".*") else name)
            if target.exists():
                open_files.append(target)
    return found


def _walk(node: ast.AST, in_function: bool) -> Iterator[Imported]:
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            for branch in node.orelse:
                yield from _walk(branch, in_function)
            return
        case ast.Import():
            yield from (Imported(alias.name, in_function) for alias in node.names)
        case ast.ImportFrom():
            assert node.level == 0, "relative import: imports name their package here"
            yield from (Imported(_resolve(str(node.module), alias.name), in_function) for alias in node.names)
        case ast.Call(func=ast.Name(id="import_module") | ast.Attribute(attr="import_module")):
            yield Imported(_dynamic(node.args[0]), in_function)
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
            in_function = True
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, in_function)


def _resolve(module: str, name: str) -> str:
    """``from a import b`` imports ``a.b`` where that is a module, else ``a``."""
    inner = f"{module}.{name}"
    return inner if module_file(inner).exists() else module


def _dynamic(argument: ast.expr) -> str:
    match argument:
        case ast.Constant(value=str(name)):
            return name
        case ast.JoinedStr(values=[ast.Constant(value=str(prefix)), ast.FormattedValue()]):
            return f"{prefix}*"
    raise AssertionError(f"import_module({ast.unparse(argument)}): expected a literal or f'package.{{name}}'")
