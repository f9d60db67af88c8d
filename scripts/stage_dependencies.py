"""Which source files each stage of dvc.yaml depends on: `python scripts/stage_dependencies.py` writes the lists anew.

A stage depends on what its command imports. Stages are written once for all datasets and experiments, so that a list
holds the union over them, except for the files that a name stands for: ``${item.layout}`` (of a dataset),
``${item.code}`` (of a method).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

import yaml
from source_imports import PACKAGE, REPOSITORY, imports_of, module_file, reachable

DVC = REPOSITORY / "dvc.yaml"
# Importing these, or changing them, changes no result: they parse arguments and measure time.
COMMANDS = tuple(f"equisynth.commands.{name}" for name in ("stages", "tasks", "options"))
PARSING = ("equisynth.cli", *COMMANDS, "equisynth.timing")
NO_RESULT = {f"src/{name.replace('.', '/')}.py" for name in PARSING}
# Read by a module and not imported by it: copied into each registered version, or put into a page.
READ = {
    "src/equisynth/registry.py": ["src/equisynth/served_model.py"],
    "src/equisynth/overview/page.py": ["src/equisynth/overview/page.css", "src/equisynth/overview/page.js"],
}


class Instance(NamedTuple):
    """One stage with foreach filled in."""

    name: str
    stage: str
    key: str
    item: Any


@cache
def stages() -> dict[str, Any]:
    """The stages of dvc.yaml as written."""
    return dict(yaml.safe_load(DVC.read_text(encoding="utf-8"))["stages"])


@cache
def parameters() -> dict[str, Any]:
    """params.yaml as written."""
    return dict(yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8")))


def instances() -> Iterator[Instance]:
    """Every stage of dvc.yaml, foreach stages expanded."""
    tree = parameters()
    for stage, content in stages().items():
        found = re.fullmatch(r"\$\{(\w+)\}", content.get("foreach", ""))
        if found is None:
            yield Instance(stage, stage, "", None)
            continue
        for key, item in tree[found[1]].items():
            yield Instance(f"{stage}@{key}", stage, key, item)


def imported(instance: Instance) -> dict[str, str]:
    """The source files that the stage's command imports: path -> path with names that stand for it."""
    tree, is_experiment = parameters(), isinstance(instance.item, dict) and "method" in instance.item
    chosen, patterns = {}, {}
    if isinstance(instance.item, dict) and "layout" in instance.item:
        layout = instance.item["layout"]
        chosen["equisynth.layouts.*"] = f"equisynth.layouts.{layout}"
        for room in ("layouts", "datasets"):
            patterns[f"src/equisynth/{room}/{layout}.py"] = f"src/equisynth/{room}/${{item.layout}}.py"
    if is_experiment:
        method = tree["methods"][instance.item["method"]]["method"]
        chosen["equisynth.methods.*"] = f"equisynth.methods.{method}"
        patterns[f"src/equisynth/methods/{method}.py"] = "src/equisynth/methods/${item.code}.py"
    content = stages()[instance.stage]
    command = re.match(r"bin/equisynth (\S+)", content.get("do", content)["cmd"])
    assert command is not None, f"{instance.name}: expected a command that begins with bin/equisynth"
    name = command[1].replace("-", "_")
    start = module_file(f"equisynth.stages.{name}")
    assert start.exists(), f"{instance.name}: no {start.relative_to(REPOSITORY)}"
    starts = [start, *(module_file(module) for module in _helpers_of_command(name))]
    files = set().union(*(reachable(path, chosen) for path in starts))
    names = {path.relative_to(REPOSITORY).as_posix() for path in files} - NO_RESULT
    names |= {path for name in names & READ.keys() for path in READ[name]}
    return {name: patterns.get(name, name) for name in sorted(names)}


def stated(instance: Instance) -> set[str]:
    """The stage's dependencies below src/ in dvc.yaml, with foreach's names filled in as DVC does."""
    tree = parameters()

    def fill(match: re.Match[str]) -> str:
        head, *rest = match[1].split(".")
        value: Any = {"key": instance.key, "item": instance.item}.get(head, tree.get(head))
        for part in rest:
            value = value[part]
        return str(value)

    content = stages()[instance.stage]
    filled = (re.sub(r"\$\{([\w.-]+)\}", fill, path) for path in content.get("do", content).get("deps", []))
    return {path for path in filled if path.startswith("src/")}


def expected(of: Iterable[Instance]) -> dict[str, list[str]]:
    """Stage -> the list of source files that it needs for these instances."""
    lists: dict[str, set[str]] = {}
    for instance in of:
        lists.setdefault(instance.stage, set()).update(imported(instance).values())
    return {stage: sorted(paths) for stage, paths in lists.items()}


def rewritten(text: str) -> str:
    """dvc.yaml with new lists of source files; everything else stays as it is."""
    lists, lines, stage, waiting, item = expected(instances()), [], "", False, ""
    for line in text.splitlines():
        if found := re.fullmatch(r"  (\w+):", line):
            stage = found[1]
        if waiting and not line.startswith(item):
            lines += [f"{item}{path}" for path in lists[stage]]
            waiting = False
        if waiting and line.strip().startswith("- src/"):
            continue
        if found := re.fullmatch(r"( +)deps:", line):
            waiting, item = True, f"{found[1]}  - "
        lines.append(line)
    return "\n".join(lines) + "\n"


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
    return {
        module
        for module in found
        if module.split(".")[0] == PACKAGE and f"src/{module.replace('.', '/')}.py" not in NO_RESULT
    }


if __name__ == "__main__":
    DVC.write_text(rewritten(DVC.read_text(encoding="utf-8")), encoding="utf-8")
