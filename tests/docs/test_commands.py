"""Every command, option, stage, target, file and link that the user's pages name is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from docs.blocks import ROOT, Block, commands, inline_code, read_blocks, user_pages
from equisynth import cli, params
from equisynth.errors import UserError

PAGES = {path.relative_to(ROOT).as_posix(): path for path in user_pages()}
MENTIONED_ONLY = ("docs/reference/", "docs/wrong-inputs.md", "docs/results.md")
"""Generated pages: their commands are usage lines, or wrong on purpose."""
INDENTED = ("README.md", "docs/methods", "docs/experiments.md", "docs/results.md")
"""Pages whose indented blocks may hold commands."""
KNOWN = {
    "cat", "cd", "cp", "curl", "docker", "echo", "export", "git", "ls", "mkdir", "mv", "pip", "python", "rsync",
    "sbatch", "srun",
    "tar", "test", "true", "wait", "sleep", "kill", ".",
    "dask", "dvc", "equisynth", "make", "mlflow", "optuna-dashboard", "torchrun",
}  # fmt: skip
PREPARED_BY_USER = re.compile(r"^(my|mine|heads)")
"""Datasets of the user's own in the examples."""
FOLDERS = "benchmarks|docs|examples|proof|published|scripts|search|src|tests"


def blocks() -> Iterator[Block]:
    for path in PAGES.values():
        yield from read_blocks(path)


def spoken_commands(block: Block) -> list[list[str]]:
    """A block's commands; of indented ones those lines that begin with a program."""
    found = list(commands(block.text)) if block.language in ("sh", "bash") else []
    if block.language == "indented" and block.page.startswith(INDENTED):
        lines = block.text.splitlines()
        found = [words for line in lines if re.match(r"[\w./-]+(\s|$)", line) for words in _if_whole(line)]
        found = [words for words in found if _program(words) in KNOWN]
    return found


@cache
def all_commands() -> list[tuple[str, list[str]]]:
    """Place and words of each command in a block."""
    return [(block.place, words) for block in blocks() for words in spoken_commands(block)]


@cache
def all_inline() -> list[tuple[str, str]]:
    """Page and text of each piece of code in running text."""
    pages = {name: path for name, path in PAGES.items() if not name.startswith(MENTIONED_ONLY)}
    return [(name, code) for name, path in pages.items() for code in dict.fromkeys(inline_code(path))]


def test_blocks_are_fenced() -> None:
    assert len(all_commands()) > 40
    indented = [b.place for b in blocks() if b.language == "indented" and not b.page.startswith(INDENTED)]
    assert not indented, f"fence these: ```sh for commands, ```text for others: {indented}"
    unnamed = [b.place for b in blocks() if not b.language]
    assert not unnamed, f"say what these fenced blocks are, such as ```sh or ```text: {unnamed}"


def test_what_is_not_run_says_why() -> None:
    reasons = ("a download", "a GPU", "docker", "a second machine", "SLURM", "scans of your own", "minutes", "tests")
    for block in blocks():
        if block.comment.startswith("not run: "):
            assert any(reason in block.comment for reason in reasons), f"{block.place}: {block.comment}"


def test_every_program_is_known() -> None:
    unknown = {f"{place}: {words[0]}" for place, words in all_commands() if _program(words) not in KNOWN}
    assert not unknown


@pytest.mark.parametrize("name", PAGES)
def test_commands_parse(name: str) -> None:
    wrong = []
    for place, words in all_commands():
        if place.rpartition(":")[0] == name:
            complaint = complaint_of(words)
            if complaint:
                wrong.append(f"{place}: {' '.join(words)}: {complaint}")
    assert not wrong, "\n".join(wrong)


def test_commands_in_running_text_parse() -> None:
    wrong = []
    for page, code in all_inline():
        first, *rest = code.split() or [""]
        if first in ("equisynth", "make") and rest and "..." not in code:
            if len(rest) == 1 and first == "equisynth" and _command(rest)[0] is not None:
                continue  # a command's name
            complaint = complaint_of(re.sub(r"\bN\b", "1", re.sub(r"[\[\]']", "", code)).split())
            if complaint:
                wrong.append(f"{page}: `{code}`: {complaint}")
    assert not wrong, "\n".join(wrong)


def test_stages_in_running_text_exist() -> None:
    wrong = []
    for page, code in all_inline():
        for stage, key in re.findall(r"(?:^|\s)([a-z_]+)@([\w-]+)", code):
            if not key.isupper() and not code.startswith("models:/"):
                complaint = _stage_complaint(f"{stage}@{key}")
                if complaint:
                    wrong.append(f"{page}: `{code}`: {complaint}")
    assert not wrong, "\n".join(wrong)


def test_files_that_are_named_exist() -> None:
    wrong = []
    texts = [(page, code) for page, code in all_inline()] + [
        (place, " ".join(words)) for place, words in all_commands()
    ]
    for page, code in texts:
        for path in re.findall(rf"(?:^|\s)((?:{FOLDERS})/[\w./-]+\w|params\.yaml|dvc\.yaml|Makefile|Dockerfile)", code):
            known = (ROOT / path).exists() or path.startswith(
                ("docs/results", "tests/golden/", "src/equisynth/methods/mine")
            )
            if not known and not path.startswith("search/dvc.yaml"):
                wrong.append(f"{page}: {path}")
    assert not wrong, f"no such files: {wrong}"


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    text = PAGES[name].read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        path = (PAGES[name].parent / file).resolve() if file else PAGES[name]
        generated = path in (ROOT / "docs/results.md",) or (ROOT / "docs/results") in path.parents
        assert path.exists() or generated, f"{name}: link to {target}: no such file"
        if anchor:
            assert anchor in _anchors(path), f"{name}: link to {target}: no such heading"


def test_every_page_is_linked_from_the_index() -> None:
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    methods = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    for name in PAGES:
        inner = name.removeprefix("docs/")
        if name.startswith("docs/") and inner not in ("index.md", "results.md"):
            assert f"]({inner})" in (methods if inner.startswith("methods/") else index), f"docs/index.md: link {inner}"


def test_wrong_commands_are_found() -> None:
    """What the tests above would not forgive."""
    for line, words in {
        "equisynth trian x": "No such command",
        "equisynth train": "Missing argument",
        "equisynth predict a.nii --modell x": "--modell",
        "equisynth search ixi-nosuchmethod": "nosuchmethod",
        "dvc repro nosuch@ixi": "no stage",
        "dvc repro train@ixi-nosuch": "no stage",
        "dvc exp rnu": "invalid choice",
        "mlflow models srve": "No such command",
        "make dmeo": "no target",
        "torchrun -m equisynth trian x": "No such command",
    }.items():
        assert words in (complaint_of(line.split()) or ""), line
    for line in ("equisynth predict a.nii --model m --output b", "dvc repro report@ixi-eqsim_com_eqadv", "make demo"):
        assert complaint_of(line.split()) is None, line


# --- what is wrong with a command


def complaint_of(words: list[str]) -> str | None:
    """One line, or None where the command is well formed."""
    program, rest = _program(words), words[1:]
    if program in ("torchrun", "python") and "-m" in rest and rest[rest.index("-m") + 1] == "equisynth":
        program, rest = "equisynth", rest[rest.index("-m") + 2 :]
    if program == "srun":
        return complaint_of(rest)
    if program == "equisynth":
        return _equisynth_complaint(rest)
    if program == "make":
        return _make_complaint(rest)
    if program == "dvc":
        return _dvc_complaint(rest)
    if program == "mlflow":
        from mlflow.cli import cli as mlflow

        return _click_complaint(mlflow, rest)
    return None


def _equisynth_complaint(words: list[str]) -> str | None:
    if words in (["--help"], ["--version"]):
        return None
    command, rest = _command(words)
    if command is None:
        return f"No such command {' '.join(words[:1])!r}"
    if rest == ["--help"]:
        return None
    try:
        context = command.make_context(command.name, list(rest), resilient_parsing=False)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return str(error.format_message())
    return _experiment_complaint(context.params)


def _command(words: list[str]) -> tuple[Any, list[str]]:
    command: Any = _top()
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    return (None, words) if hasattr(command, "commands") else (command, words)


def _experiment_complaint(found: dict[str, Any]) -> str | None:
    names = found.get("experiments") or [found.get("experiment")]
    for name in names:
        example = not name or name.isupper() or "$" in name or PREPARED_BY_USER.match(name) or name.endswith("-mine")
        if not example and not name.startswith("<"):
            try:
                params.dataset_of(_tree(), name)
            except UserError as error:
                return str(error)
    dataset = found.get("dataset")
    if dataset and not dataset.isupper() and not PREPARED_BY_USER.match(dataset) and dataset not in _tree()["datasets"]:
        return f"no dataset {dataset}"
    return None


def _click_complaint(group: Any, words: list[str]) -> str | None:
    import click

    command, rest = group, words
    while isinstance(command, click.Group):
        if not rest or command.get_command(click.Context(command), rest[0]) is None:
            return f"No such command {' '.join(rest[:1])!r}"
        command, rest = command.get_command(click.Context(command), rest[0]), rest[1:]
    try:
        command.make_context(command.name, list(rest))
    except click.UsageError as error:
        return error.format_message()
    return None


def _dvc_complaint(words: list[str]) -> str | None:
    try:
        _dvc_parser().parse_args(words)
    except Exception as error:
        return str(error) or f"invalid choice: {' '.join(words)}"
    except SystemExit as error:
        return f"exit code {error.code}"
    if words[0] == "repro" or words[:2] == ["exp", "run"]:
        targets = [word for word in words[1:] if ("@" in word or ".yaml" in word) and "=" not in word]
        return next(filter(None, map(_stage_complaint, targets)), None)
    return None


@cache
def _dvc_parser() -> Any:
    from dvc.cli.parser import get_main_parser

    def stop(message: str) -> None:
        raise ValueError(message)

    parser = get_main_parser()
    for each in _parsers(parser):
        each.error = stop
    return parser


def _parsers(parser: Any) -> Iterator[Any]:
    yield parser
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for inner in dict.fromkeys(action.choices.values()):
                yield from _parsers(inner)


def _stage_complaint(target: str) -> str | None:
    file, _, name = target.rpartition(":")
    file = file or "dvc.yaml"
    if name.endswith(".yaml"):
        file, name = name, ""
    path = ROOT / file
    if not path.is_file():
        return f"no file {file}"
    stages = yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]
    stage, _, key = name.partition("@")
    if name in stages or not name:
        return None
    if stage not in stages:
        return f"no stage {stage} in {file}"
    over = stages[stage].get("foreach")
    keys = over if isinstance(over, list | dict) else _tree().get(str(over).strip("${}"), {})
    if key and key not in keys and not PREPARED_BY_USER.match(key) and not key.isupper():
        return f"no stage {name} in {file}"
    return None


def _make_complaint(words: list[str]) -> str | None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {t for line in re.findall(r"^([\w][\w -]*):(?!=)", makefile, re.MULTILINE) for t in line.split()}
    for word in words:
        name = word.partition("=")[0]
        if "=" in word and not re.search(rf"\b{name}\b", makefile):
            return f"no variable {name}"
        if "=" not in word and word not in targets:
            return f"no target {word}"
    return None


def _program(words: list[str]) -> str:
    return Path(words[0]).name if not words[0].startswith("./") else words[0]


def _if_whole(line: str) -> list[list[str]]:
    """The commands of a line of an indented block; none where it is a part of one."""
    try:
        return list(commands(line.rstrip("\\")))
    except ValueError:
        return []


def _anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    plain = (re.sub(r"&lt;|&gt;", "", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


@cache
def _top() -> Any:
    return typer.main.get_command(cli.app)


@cache
def _tree() -> dict[str, Any]:
    return params.read(ROOT / "params.yaml")
