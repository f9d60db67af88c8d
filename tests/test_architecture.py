"""Who may import whom, and that each pipeline stage depends on the list of source files that its command imports."""

from __future__ import annotations

import ast
import re
import resource
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import published_stages
import pytest
import yaml
from published_stages import REPOSITORY

from equisynth.source_imports import PACKAGE, SOURCE, imports, module_file, module_name, ours, reachable
from equisynth.stages import code

FILES = sorted((SOURCE / PACKAGE).rglob("*.py"))
NAMES = [module_name(path) for path in FILES]


def _modules(room: str, marked_by: str) -> set[str]:
    """Modules of a room in which a line begins so."""
    files = [path for path in FILES if path.parent.name == room]
    return {
        path.stem for path in files if re.search(rf"^{marked_by}\b", path.read_text(encoding="utf-8"), re.MULTILINE)
    }


METHODS = _modules("methods", "METHOD")
KINDS = _modules("datasets", "def prepare_input")
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
    "equisynth.evaluation.metrics": ["equisynth.evaluation.kernels"],
    "equisynth.evaluation.kernels": [],
    "equisynth.files": ["equisynth.errors"],
    "equisynth.config": ["equisynth.errors"],
    "equisynth.errors": [],
}  # fmt: skip
# Libraries that only some modules may import.
LIBRARIES = {
    "mlflow": {f"equisynth.{name}" for name in ("tracking", "runs", "registry", "served_model", "service", "store")},
    "optuna": {f"equisynth.search.{name}" for name in ("study", "leases", "trials", "workers", "plots")},
    "pytorch_fid": {"equisynth.evaluation.fid"},
    "torchvision": {"equisynth.evaluation.fid"},
    "accelerate": {"equisynth.training", "equisynth.processes"},
    "typer": {"equisynth.cli", *(f"equisynth.commands.{name}" for name in ("options", "proof", "stages", "tasks"))},
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
            # finds a method's file by the name in the settings, and checks what these hold for it
            allowed = [*allowed, "equisynth.methods.*", "equisynth.method_names", "equisynth.validation"]
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
    rooms = {"equisynth.commands", *(f"equisynth.commands.{name}" for name in ("options", "proof", "stages", "tasks"))}
    for module in ("equisynth.cli", *sorted(rooms - {"equisynth.commands"})):
        early = {found.name for found in imports(module_file(module)) if not found.in_function}
        assert {name for name in early if name.startswith(PACKAGE)} <= {"equisynth.errors", *rooms}


STAGES = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
CLOSURES = {name: files for stage in code.STAGES for name, files in code.closures(stage).items()}


def per_item(stage: dict[str, Any]) -> dict[str, Any]:
    """Key -> item of a stage with foreach; of any other stage one entry without."""
    found = re.fullmatch(r"\$\{(\w+)\}", stage.get("foreach", ""))
    return dict(PARAMETERS[found[1]]) if found else {"": {}}


def stated(stage: str, item: dict[str, str]) -> list[str]:
    """The lists of source files that a stage depends on, names of layouts and methods filled in as DVC does."""
    deps = STAGES[stage].get("do", STAGES[stage])["deps"]
    filled = (re.sub(r"\$\{item\.(\w+)\}", lambda match: item[match[1]], path) for path in deps)
    return [Path(path).stem for path in filled if path.startswith("build/code/")]


def test_every_stage_has_a_list_of_its_source_files() -> None:
    assert set(code.STAGES) == set(STAGES) - {"code"}


@pytest.mark.parametrize("stage", code.STAGES)
def test_each_stage_depends_on_the_list_of_its_own_files(stage: str) -> None:
    for key, item in per_item(STAGES[stage]).items():
        (name,) = stated(stage, item)
        assert CLOSURES[name], f"{stage}@{key}: no list {name}"
        assert name.split("-")[0] == stage


def test_the_code_of_an_experiment_is_its_method_s() -> None:
    for key, item in PARAMETERS["pipeline"].items():
        assert item["code"] == PARAMETERS["methods"][item["method"]]["method"], key


def test_the_published_stages_are_the_script_s() -> None:
    text = published_stages.FILE.read_text(encoding="utf-8")
    assert published_stages.text() == text, "run `python scripts/published_stages.py`"
    assert published_stages.page() == published_stages.PAGE.read_text(encoding="utf-8"), (
        "run `python scripts/published_stages.py`"
    )


def test_published_stages_are_those_of_the_default_pipeline() -> None:
    """Each published experiment has all of them, there or here, and what it depends on is there."""
    content = yaml.safe_load(published_stages.FILE.read_text(encoding="utf-8"))["stages"]
    assert set(content) == {name for name, stage in STAGES.items() if "pipeline" in stage.get("foreach", "")}
    for name in content:
        for key, item in content[name]["foreach"].items():
            assert key not in PARAMETERS["pipeline"]
            (files,) = stated(name, item)
            assert CLOSURES[files]
            for scale in PARAMETERS["scales"]:
                assert item["part"] in PARAMETERS["scales"][scale][item["dataset"]], (key, scale)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_trainings_depend_on_their_own_method_s_files(method: str) -> None:
    files = CLOSURES[f"train-{method}"]
    chosen = {"equisynth.methods.*": f"equisynth.methods.{method}"}
    assert reachable(module_file(f"equisynth.methods.{method}"), chosen) <= files
    assert not files & {module_file(f"equisynth.methods.{name}") for name in METHODS - {method}}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_methods_know_no_other_method_and_no_files(method: str) -> None:
    found = {entry.name for entry in imports(module_file(f"equisynth.methods.{method}"))}
    assert not found & {f"equisynth.methods.{name}" for name in METHODS - {method}}
    assert not {name.split(".")[0] for name in found} & {"dvc", "mlflow", "pathlib", "nibabel", "tifffile"}
    assert not {
        name for name in found if re.match(r"equisynth\.(files|store|tracking|registry|stages|datasets)\b", name)
    }


@pytest.mark.parametrize("file", ["report.py", "search/run.py", "evaluation/metrics.py", "evaluation/fid.py", "cli.py"])
def test_changing_what_comes_after_training_leaves_training_up_to_date(file: str) -> None:
    path = SOURCE / PACKAGE / file
    assert path.exists()
    assert not [name for name, files in CLOSURES.items() if name.startswith("train-") and path in files]


@pytest.mark.parametrize("layout", ["ixi", "coco", "cermep", "staining", "folder"])
def test_changing_another_layout_leaves_preparation_up_to_date(layout: str) -> None:
    files = CLOSURES[f"prepare-{layout}"]
    assert module_file(f"equisynth.layouts.{layout}") in files
    others = set(code.choices(code.LAYOUTS)) - {layout}
    assert not files & {module_file(f"equisynth.{room}.{name}") for room in ("layouts", "datasets") for name in others}


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("method", sorted(METHODS))
def test_applying_a_model_in_a_folder_needs_the_base_dependencies_only(method: str, kind: str) -> None:
    """What an installation without extras has; only models pulled by name need the registry's libraries, and only
    preparation simulates and registers: in functions that predictions do not call (tests/test_raw_scans.py tries it).
    """
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    base = {re.match(r"[\w-]+", requirement)[0] for requirement in project["dependencies"]}
    renamed = {"pyyaml": "yaml", "pillow": "PIL", "intensity-normalization": "intensity_normalization"}
    modules = {renamed.get(name, name) for name in base} | {PACKAGE} | sys.stdlib_module_names
    chosen = {
        "equisynth.methods.*": f"equisynth.methods.{method}",
        "equisynth.datasets.*": f"equisynth.datasets.{kind}",
    }
    files = reachable(module_file("equisynth.apply"), chosen)
    assert len(files) > 10
    for left_out in ("registry", "geometry.random_deformations", "preprocessing.registration"):
        files -= reachable(module_file(f"{PACKAGE}.{left_out}"), chosen)
    for path in files:
        assert {found.name.split(".")[0] for found in imports(path)} <= modules, path


def test_help_answers_at_once() -> None:
    """The processor's time: other work on the machine only adds to the clock's."""

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-m", PACKAGE, "--help"], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert "train" in done.stdout
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(5)) < 0.5
