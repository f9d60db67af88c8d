"""What a long task says of itself."""

from __future__ import annotations

import io

import pytest

from equisynth.remaining import SECONDS, Display, display, in_words


def test_a_log_gets_a_line_now_and_then() -> None:
    clock, log = [0.0], io.StringIO()
    tell = Display(None, log, lambda: clock[0]).show("scan.nii", "tiles")
    for done in range(1, 11):
        clock[0] += SECONDS / 2
        tell(done, 10)
    lines = log.getvalue().splitlines()
    assert lines[0] == "scan.nii: 2 of 10 tiles, about 60 s left"
    assert [line.split()[1] for line in lines] == ["2", "4", "6", "8"]  # the last part says it by itself


def test_what_is_fast_says_nothing() -> None:
    log = io.StringIO()
    with display(log) as shown:
        tell = shown.show("scan.nii", "tiles")
        for done in range(1, 101):
            tell(done, 100)
    assert log.getvalue() == ""


def test_a_terminal_gets_bars_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with display(log) as shown:
        cases, first = shown.show("out", "cases"), shown.show("a.nii", "tiles")
        first(4, 8)
        cases(1, 2)
        shown.show("b.nii", "tiles")(1, 8)
        assert shown.bars is not None
        assert [task.description for task in shown.bars.tasks] == ["out", "b.nii"]
    text = log.getvalue()
    assert "left:" in text
    assert "1/8" in text


@pytest.mark.parametrize(("seconds", "words"), [(4.2, "4 s"), (720, "12 min"), (12600, "3.5 h")])
def test_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
