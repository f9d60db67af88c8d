"""The code blocks of the user's pages, and the commands in them.

Conventions of the pages: a block of commands is fenced as ``sh``, trees and the like as ``text``. What stands in an
HTML comment right before a block says how it is tried:

- ``not run: REASON``: only checked to be well formed;
- ``in the background``: a server; it ends with the page;
- ``into params.yaml``: a user would merge this YAML there;
- ``paste into params.yaml``: a user would merge the YAML that this block's commands print.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COMMENT = re.compile(r"<!-- (.*?) -->")
FENCE = re.compile(r"( *)```(\w*)$")
OPERATORS = {"&&", "||", ";", "|", "&", "(", ")", ";;"}
REDIRECTIONS = {">", ">>", "<", ">&", "2>", "&>"}
LEADING = {"do", "then", "else", "!", "time"}
"""Words of the shell that stand before a command."""


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: relative to the repository.
        line: number of its first line of code.
        language: what the fence says; "indented" without one.
        comment: what stands in the HTML comment before it.
    """

    page: str
    line: int
    language: str
    text: str
    comment: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        return self.language == "sh" and not self.comment.startswith("not run: ")


def user_pages() -> list[Path]:
    """README and everything in docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def read_blocks(path: Path) -> list[Block]:
    """All blocks of a page, in order."""
    lines, page = path.read_text(encoding="utf-8").splitlines(), path.relative_to(ROOT).as_posix()
    blocks, comment, number = [], "", 0
    while number < len(lines):
        line = lines[number]
        fence = FENCE.match(line)
        first = number + 1
        if fence:
            number = next(n for n in range(first, len(lines)) if lines[n].strip() == "```")
            text = [inner.removeprefix(fence[1]) for inner in lines[first:number]]
            blocks.append(Block(page, first + 1, fence[2], "\n".join(text), comment))
        elif line.startswith("    ") and (number == 0 or not lines[number - 1].strip()) and not _in_list(lines, number):
            while number + 1 < len(lines) and (lines[number + 1].startswith("    ") or not lines[number + 1].strip()):
                number += 1
            text = [inner[4:] for inner in lines[first - 1 : number + 1]]
            blocks.append(Block(page, first, "indented", "\n".join(text).rstrip(), comment))
        found = COMMENT.fullmatch(line.strip())
        if found:
            comment = found[1]
        elif line.strip() or fence:
            comment = ""
        number += 1
    return blocks


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a shell text, as words: without comments, assignments, redirections and bodies of <<."""
    for line in _logical_lines(text):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        lexer.commenters = ""
        words: list[str] = []
        skip = False
        for word in [*_before_comment(lexer), ";"]:
            if skip:
                skip = False
            elif word in REDIRECTIONS:
                skip = True
            elif word in OPERATORS:
                yield from _simple(words)
                words = []
            else:
                words.append(word)


def inline_code(path: Path) -> list[str]:
    """What stands between backticks in the running text and tables of a page."""
    text = re.sub(r"^( *)```.*?^ *```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("    "))
    return [" ".join(code.replace("\\|", "|").split()) for code in re.findall(r"`([^`]+)`", prose)]


def _simple(words: list[str]) -> Iterator[list[str]]:
    while words and (words[0] in LEADING or re.fullmatch(r"[A-Za-z_]\w*=.*", words[0], re.DOTALL)):
        words = words[1:]
    if words and words[0] not in ("done", "fi", "for", "if", "while", "case", "esac"):
        yield words


def _before_comment(words: Iterator[str]) -> Iterator[str]:
    for word in words:
        if word.startswith("#"):
            return
        yield word


def _logical_lines(text: str) -> Iterator[str]:
    lines = iter(re.sub(r"\$\([^()]*\)", "$X", text.replace("\\\n", " ")).splitlines())
    for line in lines:
        here = re.search(r"<<-?\s*['\"]?(\w+)['\"]?", line)
        if here:
            while next(lines, here[1]).strip() != here[1]:
                pass
            line = line[: here.start()] + line[here.end() :]
        if line.strip():
            yield line


def _in_list(lines: list[str], number: int) -> bool:
    """Whether an indented line goes on with a list's entry."""
    above = next((line for line in reversed(lines[:number]) if line.strip() and not line.startswith("    ")), "")
    return bool(re.match(r" *([-*]|\d+\.) ", above)) or above.startswith("  ")
