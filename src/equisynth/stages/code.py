"""Stage ``code``: which source files each stage is made of, as one file per stage that the stage depends on.

A stage depends on what its command imports, found by walking the imports. Where a name of params.yaml decides at run
time what is imported, a dataset's layout or a method, there is one file for each: ``train-pix2pix.txt``. A line is
the sha256 and the path of one source file, so that DVC runs again exactly what a change concerns, and `diff` shows why.
"""

from __future__ import annotations

import ast
from pathlib import Path

from equisynth.files import atomic_folder, sha256
from equisynth.method_names import method_names
from equisynth.source_imports import PACKAGE, SOURCE, imports_of, module_file, ours, reachable

STAGES = ("raw", "prepare", "train", "predict", "real_images", "evaluate", "register", "report", "overview")
LAYOUTS, METHODS = f"{PACKAGE}.layouts.*", f"{PACKAGE}.methods.*"
"""Modules that a name of params.yaml chooses."""
COMMANDS = tuple(f"{PACKAGE}.commands.{name}" for name in ("stages", "tasks", "options"))
NO_RESULT = {module_file(name) for name in (f"{PACKAGE}.cli", f"{PACKAGE}.timing", *COMMANDS)}
"""Importing these, or changing them, changes no result: they parse arguments and measure time."""
TOP = SOURCE / PACKAGE
READ = {"registry.py": ("served_model.py",), "overview/page.py": ("overview/page.css", "overview/page.js")}
"""Read by a module and not imported by it: copied into each registered version, or put into a page."""


def run(folder: Path) -> None:
    """Writes ``<stage>.txt``, or one ``<stage>-<name>.txt`` per layout or method; the folder whole or not at all."""
    with atomic_folder(folder) as temporary:
        for stage in STAGES:
            for name, files in closures(stage).items():
                files |= {TOP / read for path, reads in READ.items() if TOP / path in files for read in reads}
                lines = [f"{sha256(file)}  {file.relative_to(SOURCE).as_posix()}\n" for file in sorted(files)]
                (temporary / f"{name}.txt").write_text("".join(lines), encoding="utf-8")


def closures(stage: str) -> dict[str, set[Path]]:
    """The stage's name, with each layout or method that its command may import -> the source files it then imports."""
    starts = {module_file(f"{PACKAGE}.stages.{stage}"), *map(module_file, _helpers_of_command(stage))}
    common = _reached(starts, {LAYOUTS: LAYOUTS, METHODS: METHODS})
    open_names = {name for file in common for name in ours(file) if name.endswith(".*")}
    if not open_names:
        return {stage: common}
    assert len(open_names) == 1, f"{stage}: expected layouts or methods to be chosen, found {sorted(open_names)}"
    (room,) = open_names
    return {f"{stage}-{name}": _reached(starts, {room: room.replace("*", name)}) for name in choices(room)}


def choices(room: str) -> list[str]:
    """The names that ``LAYOUTS`` or ``METHODS`` may stand for."""
    if room == METHODS:
        return method_names()
    files = module_file(room).parent.glob("*.py")
    return sorted(file.stem for file in files if file.stem not in ("__init__", "base"))


def _reached(starts: set[Path], chosen: dict[str, str]) -> set[Path]:
    return set().union(*(reachable(start, chosen) for start in starts)) - NO_RESULT


def _helpers_of_command(name: str) -> set[str]:
    """Our modules imported by those functions of package ``commands`` that the command's function calls."""
    trees = [ast.parse(module_file(module).read_text(encoding="utf-8")) for module in COMMANDS]
    functions = {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)}
    called = {
        node.func.id
        for node in ast.walk(functions[name])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    found = {module.name for helper in called & set(functions) for module in imports_of(functions[helper])}
    return {module for module in found if module.startswith(f"{PACKAGE}.") and module_file(module) not in NO_RESULT}
