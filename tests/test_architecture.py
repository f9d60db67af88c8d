"""Who may import whom, and that each pipeline stage depends on exactly the source files that its command imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from imports import PACKAGE, REPOSITORY, SOURCE, imports, imports_of, module_file, module_name, ours, reachable

FILES = sorted((SOURCE / PACKAGE).rglob("*.py"))
NAMES = [module_name(path) for path in FILES]
METHODS = {path.stem for path in FILES if re.search(r"^METHOD\b", path.read_text(encoding="utf-8"), re.MULTILINE)}
STAGES = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
PARAMETERS = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))

# What a room may import of ours: exact modules, or whole packages ("name.").
ROOMS = {
    "equisynth.geometry.": ["equisynth.geometry."],
    "equisynth.networks.": ["equisynth.networks."],
    "equisynth.losses": ["equisynth.geometry."],
    "equisynth.methods.": [
        "equisynth.config", "equisynth.errors", "equisynth.geometry.", "equisynth.losses", "equisynth.networks.",
        *(name for name in NAMES if name.startswith("equisynth.methods.") and name.split(".")[-1] not in METHODS),
    ],
    "equisynth.evaluation.metrics": [],
    "equisynth.files": ["equisynth.errors"],
    "equisynth.config": ["equisynth.errors"],
    "equisynth.errors": [],
}  # fmt: skip
# Libraries that only some modules may import.
LIBRARIES = {
    "mlflow": {"equisynth.tracking", "equisynth.registry", "equisynth.served_model", "equisynth.store"},
    "optuna": {"equisynth.search"},
    "pytorch_fid": {"equisynth.evaluation.fid"},
    "torchvision": {"equisynth.evaluation.fid"},
    "accelerate": {"equisynth.training"},
    "typer": {"equisynth.cli"},
    "dvc": set(),
}


def matches(name: str, patterns: list[str]) -> bool:
    return any(name == pattern or (pattern.endswith(".") and name.startswith(pattern)) for pattern in patterns)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room: str) -> None:
    files = [path for path, name in zip(FILES, NAMES, strict=True) if matches(name, [room])]
    assert files, f"{room}: no such module"
    for path in files:
        allowed = ROOMS[room]
        if module_name(path) == "equisynth.methods.base":
            allowed = [*allowed, "equisynth.methods.*"]  # finds a method's file by the name in the settings
        wrong = {name for name in ours(path) if not matches(name, allowed)}
        assert not wrong, f"{path.relative_to(REPOSITORY)} imports {sorted(wrong)}, allowed: {allowed}"


@pytest.mark.parametrize("library", LIBRARIES)
def test_libraries_stay_in_their_modules(library: str) -> None:
    users = {
        name
        for path, name in zip(FILES, NAMES, strict=True)
        if any(found.name.split(".")[0] == library for found in imports(path))
    }
    assert users <= LIBRARIES[library], f"{library} is imported by {sorted(users - LIBRARIES[library])}"


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=str)
def test_init_files_hold_docstrings_only(path: Path) -> None:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in body)


def test_every_package_has_an_init() -> None:
    folders = {path.parent for path in FILES}
    assert {folder for folder in folders if not (folder / "__init__.py").exists()} == set()


def test_command_line_imports_nothing_of_ours_before_it_knows_the_command() -> None:
    early = {found.name for found in imports(module_file("equisynth.cli")) if not found.in_function}
    assert {name for name in early if name.startswith(PACKAGE)} <= {"equisynth.errors"}


def _instances() -> list[tuple[str, str, str, Any]]:
    """(stage@key, stage, key, item) for every stage of dvc.yaml, foreach stages expanded."""
    found = []
    for stage, content in STAGES.items():
        if "foreach" not in content:
            found.append((stage, stage, "", None))
            continue
        section = PARAMETERS[re.fullmatch(r"\$\{(\w+)\}", content["foreach"])[1]]
        found += [(f"{stage}@{key}", stage, key, item) for key, item in section.items()]
    return found


INSTANCES = _instances()


def _source_dependencies(stage: str, key: str, item: Any) -> set[str]:
    """The stage's dependencies below src/, with foreach's ``${key}`` and ``${item.x}`` filled in as DVC does."""

    def fill(match: re.Match[str]) -> str:
        head, *rest = match[1].split(".")
        value: Any = {"key": key, "item": item}.get(head, PARAMETERS.get(head))
        for part in rest:
            value = value[part]
        return str(value)

    content = STAGES[stage].get("do", STAGES[stage])
    filled = (re.sub(r"\$\{([\w.-]+)\}", fill, path) for path in content.get("deps", []))
    return {path for path in filled if path.startswith("src/")}


# Importing these, or changing them, changes no result: they parse arguments and measure time.
NO_RESULT = {"src/equisynth/cli.py", "src/equisynth/timing.py"}


# Copied into each registered version, so that it changes the stage's result without being imported by it.
COPIED = {"src/equisynth/registry.py": "src/equisynth/served_model.py"}


def _imported(stage: str, key: str, item: Any) -> set[str]:
    """The source files that the stage's command imports, with those that the parameters choose."""
    is_experiment = isinstance(item, dict) and "method" in item
    chosen = {"equisynth.datasets.*": f"equisynth.datasets.{item['dataset'] if is_experiment else key}"}
    if is_experiment:
        chosen["equisynth.methods.*"] = f"equisynth.methods.{PARAMETERS['methods'][item['method']]['method']}"
    command = STAGES[stage].get("do", STAGES[stage])["cmd"]
    name = re.match(r"bin/equisynth (\S+)", command)[1]
    start = module_file(f"equisynth.stages.{name}")
    assert start.exists(), f"{stage}: no {start.relative_to(REPOSITORY)} for '{command}'"
    starts = [start, *(module_file(module) for module in _helpers_of_command(name))]
    files = set().union(*(reachable(path, chosen) for path in starts))
    names = {path.relative_to(REPOSITORY).as_posix() for path in files} - NO_RESULT
    return names | {copy for name, copy in COPIED.items() if name in names}


def _helpers_of_command(name: str) -> set[str]:
    """Our modules imported by those functions of cli.py that the command's function calls."""
    path = module_file("equisynth.cli")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
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


@pytest.mark.parametrize(("instance", "stage", "key", "item"), INSTANCES, ids=[instance[0] for instance in INSTANCES])
def test_stage_depends_on_exactly_the_files_it_imports(instance: str, stage: str, key: str, item: Any) -> None:
    imported, stated = _imported(stage, key, item), _source_dependencies(stage, key, item)
    paste = "\n".join(f"        - {path}" for path in sorted(imported))
    assert stated == imported, (
        f"{instance}: dvc.yaml lacks {sorted(imported - stated)} and has {sorted(stated - imported)} too many; "
        f"its source dependencies are:\n{paste}"
    )


def _reaches(stage: str, file: str) -> bool:
    return any(file in _source_dependencies(name, key, item) for _, name, key, item in INSTANCES if name == stage)


@pytest.mark.parametrize("file", ["report.py", "search.py", "evaluation/metrics.py", "evaluation/fid.py", "cli.py"])
def test_changing_what_comes_after_training_leaves_training_up_to_date(file: str) -> None:
    assert (SOURCE / PACKAGE / file).exists()
    assert not _reaches("train", f"src/equisynth/{file}")


def test_changing_another_method_leaves_training_up_to_date() -> None:
    assert len(METHODS) >= 2
    for instance, stage, key, item in INSTANCES:
        if stage == "train":
            own = PARAMETERS["methods"][item["method"]]["method"]
            stated = _source_dependencies(stage, key, item)
            assert f"src/equisynth/methods/{own}.py" in stated, instance
            assert not stated & {f"src/equisynth/methods/{name}.py" for name in METHODS - {own}}, instance


def test_applying_a_model_in_a_folder_needs_the_base_dependencies_only() -> None:
    """What an installation without extras has; only models pulled by name need the registry's libraries."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = {re.match(r"[\w-]+", requirement)[0].lower() for requirement in project["dependencies"]}
    modules = base - {"pyyaml", "pillow"} | {"yaml", "PIL"} | {PACKAGE} | sys.stdlib_module_names
    registry = {module_file("equisynth.registry"), module_file("equisynth.store")}
    for method in METHODS:
        files = reachable(module_file("equisynth.apply"), {"equisynth.methods.*": f"equisynth.methods.{method}"})
        assert len(files) > 10
        for path in files - registry:
            assert {found.name.split(".")[0] for found in imports(path)} <= modules, path


def test_help_answers_at_once() -> None:
    """Best of five, because other work on the machine only ever adds to the time."""

    def seconds() -> float:
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", PACKAGE, "--help"], capture_output=True, text=True, check=True)
        assert "train" in done.stdout
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.5
