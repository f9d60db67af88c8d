"""Checkpoints belong to the code that wrote them."""

from __future__ import annotations

from pathlib import Path

import pytest

from equisynth.stages import train


def test_checkpoints_of_other_code_are_discarded_and_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "checkpoints/state.pt"
    train.discard_outdated(state.parent, "ixi-noreg")
    state.write_text("epoch 3")
    train.discard_outdated(state.parent, "ixi-noreg")
    assert state.read_text() == "epoch 3"
    assert not capsys.readouterr().err

    monkeypatch.setattr(train, "code_version", lambda: "another")
    train.discard_outdated(state.parent, "ixi-noreg")
    assert not state.exists()
    assert capsys.readouterr().err == (
        "ixi-noreg: the program changed since its checkpoints were written: starting again\n"
    )
    state.write_text("epoch 1")
    train.discard_outdated(state.parent, "ixi-noreg")
    assert state.exists()
