"""docs/reference is what `make reference` writes from the code as it is now."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
import reference
import typer
from pydantic import Field

from equisynth import cli, params
from equisynth.config import Settings, Strict


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return reference.pages()


def test_the_pages_are_up_to_date(pages: dict[str, str]) -> None:
    stale = [name for name, text in pages.items() if _read(name) != text]
    assert not stale, f"docs/reference: {', '.join(stale)}: not what the code says now; run: make reference"


def test_every_command_and_section_has_its_heading(pages: dict[str, str]) -> None:
    for name in typer.main.get_command(cli.app).commands:  # type: ignore[attr-defined]
        assert f"\n### equisynth {name}" in pages["commands.md"]
    for section in params.SECTIONS:
        assert f"\n| `{section}` |" in pages["parameters.md"]
    for key in set(Settings.model_fields) - reference.COMPOSED:
        assert f"\n| `{key}` |" in pages["parameters.md"]


def test_options_are_told_as_they_are_typed(pages: dict[str, str]) -> None:
    assert "| `--json` |" in pages["commands.md"]
    assert "--as-json" not in pages["commands.md"]
    assert "| `--workers` | whole number ≥ 0 | `0` |" in pages["commands.md"]


def test_a_row_says_kind_default_and_meaning() -> None:
    class Inner(Strict):
        """Inner words."""

        kind: Literal["a", "b"] = "a"

    class Outer(Strict):
        """Words.

        Attributes:
            first, second: from the docstring,
                over two lines.
        """

        first: Annotated[int, Field(ge=1)]
        second: tuple[float, ...] | None = None
        third: bool = True  # from the comment
        inner: Inner = Inner(kind="b")

    (first, second, third, inner, kind) = reference.rows(Outer)
    assert first == reference.Row("first", "whole number ≥ 1", "required", "from the docstring, over two lines")
    assert (second.kind, second.default, second.meaning) == ("list of numbers, or null", "`null`", first.meaning)
    assert (third.kind, third.default, third.meaning) == ("`true` or `false`", "`true`", "from the comment")
    assert (inner.kind, inner.default, inner.meaning) == ("mapping", "below", "Inner words")
    assert (kind.key, kind.kind, kind.default) == ("inner.kind", "`a` or `b`", "`b`")


def _read(name: str) -> str:
    path = reference.FOLDER / name
    return path.read_text(encoding="utf-8") if path.is_file() else ""
