"""`equisynth methods`, and that each method has a page that names its options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from equisynth import params
from equisynth.errors import UserError
from equisynth.method_list import details, overview
from equisynth.method_names import method_names
from equisynth.methods.base import method_class

ROOT = Path(__file__).parents[1]
TREE = params.read(ROOT / "params.yaml")
OVERVIEW = overview(TREE)


@pytest.mark.parametrize("name", TREE["methods"])
def test_each_entry_is_listed_with_its_datasets(name: str) -> None:
    line = next(line for line in OVERVIEW.splitlines() if line.split()[:1] == [name] and line.startswith("    "))
    listed = line.replace(",", "").split()[1:]
    published = [dataset for dataset, method in params.published(TREE).values() if method == name]
    assert listed == (published or ["-"])


@pytest.mark.parametrize("code", method_names())
def test_each_method_says_what_it_is_and_has_a_page(code: str) -> None:
    lines = OVERVIEW.splitlines()
    assert len(lines[lines.index(code) + 1]) > 40
    page = (ROOT / "docs" / "methods" / f"{code}.md").read_text(encoding="utf-8")
    assert "**Use it**" in page
    for option in method_class(code).Options.model_fields:
        assert f"`{option}`" in page, option
    assert f"methods/{code}.md" in (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")


def test_options_are_shown_with_defaults_and_published_names() -> None:
    shown = details(TREE, "nemar_unmodified")
    assert shown == details(TREE, "nemar")
    assert "transformer (stn_type): unet | affine, default unet" in shown
    assert "smoothness_weight (lambda_smooth): float, default 200.0" in shown
    assert "Options" not in details(TREE, "supervised")


def test_unknown_methods_are_told_in_one_line() -> None:
    with pytest.raises(UserError, match="'pix3pix', expected one of: cycle_gan") as raised:
        details(TREE, "pix3pix")
    assert "\n" not in str(raised.value)


def test_names_in_the_pages_exist() -> None:
    """Entries of params.yaml that a page names in full."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md")))
    for dataset, method in re.findall(r"\b(ixi|coco|staining|cermep)-([a-z0-9_]{6,})\b", text):
        if not method.endswith("_"):
            assert method in TREE["methods"], f"{dataset}-{method}"
