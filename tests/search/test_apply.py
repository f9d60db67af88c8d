"""The best values into params.yaml: nothing else changes, comments stay, other YAML parsers read the same numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from equisynth.errors import UserError
from equisynth.params import read
from equisynth.search import apply as applying
from equisynth.search.apply import apply
from equisynth.search.space import override, shown
from search_workplace import EXPERIMENT, ROOT


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The project's own parameters."""
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    return path


def test_one_line_changes_and_says_the_values(file: Path) -> None:
    before, tree = file.read_text(), read(file)
    values = {"loss.commutation": 0.123456, "loss.adversarial": 1.23456e-05, "epochs": 3}
    shown_change = apply(EXPERIMENT, values, file)
    after = file.read_text()
    changed = [new for old, new in zip(before.splitlines(), after.splitlines(), strict=True) if old != new]
    assert len(changed) == 1
    assert changed[0].lstrip().startswith(f"{EXPERIMENT}: ")
    rounded = {"loss.commutation": 0.1235, "loss.adversarial": 1.235e-05, "epochs": 3}
    assert read(file) == yaml.safe_load(after) == override(tree, EXPERIMENT, rounded)
    assert shown_change.count("\n+") == 2  # its head among them
    assert f"+{changed[0]}" in shown_change
    assert apply(EXPERIMENT, values, file) == ""
    assert file.read_text() == after


def test_comments_and_what_stood_there_stay(file: Path) -> None:
    line = next(line for line in file.read_text().splitlines() if line.strip().startswith(f"{EXPERIMENT}: {{dataset"))
    block = (
        f"  {EXPERIMENT}:  # the main one\n    dataset: ixi\n    method: eqsim_com_eqadv\n    code: equivariant\n"
        "    overrides:\n      # found by hand\n      loss:\n        commutation: 0.5  # was 1\n"
        "        adversarial: 0.02   # kept\n      epochs:   7\n"
    )
    text = file.read_text().replace(f"{line}\n", block)
    file.write_text(text)
    apply(EXPERIMENT, {"loss.commutation": 0.25, "learning_rate.generator": 2e-4}, file)
    after = file.read_text()
    for kept in ("# the main one", "# found by hand", "# was 1", "adversarial: 0.02   # kept", "epochs:   7"):
        assert kept in after
    own = read(file)["pipeline"][EXPERIMENT]["overrides"]
    assert own["loss"] == {"commutation": 0.25, "adversarial": 0.02}
    assert own["learning_rate"] == {"generator": 0.0002}
    unchanged = set(text.splitlines()) - set(after.splitlines())
    assert unchanged == {"        commutation: 0.5  # was 1"}


def test_an_experiment_that_pipeline_lacks_gets_an_entry(file: Path) -> None:
    apply("ixi-noreg", {"learning_rate.generator": 1e-3}, file)
    entry = read(file)["pipeline"]["ixi-noreg"]
    assert entry["code"] == "supervised"
    assert entry["overrides"] == {"learning_rate": {"generator": 0.001}}


def test_the_file_stays_as_it_is_where_the_change_would_be_another(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_text()
    monkeypatch.setattr(applying, "_edited", lambda *arguments: (before.replace("seed: 0", "seed: 1", 1),))
    with pytest.raises(UserError, match="by hand"):
        apply(EXPERIMENT, {"loss.commutation": 0.25}, file)
    assert file.read_text() == before


@pytest.mark.parametrize("value", [1e-05, 123456.0, 1e20, 0.1, 5.0, 1 / 3, -2.5e-12, True, None, 3, "mae"])
def test_numbers_are_read_as_numbers_by_all(value: object) -> None:
    text = {True: "true", None: "null"}.get(value, shown(value)) if not isinstance(value, float) else shown(value)
    found = yaml.safe_load(text)
    assert found == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value)
    assert type(found) is type(value)
