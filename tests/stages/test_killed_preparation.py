"""Preparation killed at every case of every layout: the bytes of an undisturbed run, and one case done again a kill."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from equisynth import params
from equisynth.config import Data
from equisynth.files import read_json
from equisynth.stages import raw
from killing import prepare_until_killed
from own_data import data, pair, write_case
from pipeline_repository import ROOT as REPOSITORY
from stages.test_damage import KINDS, run_raw, stage_arguments, write
from stages.test_datasets import SMALLEST
from stages.test_prepare import DATA, PREPARATION, SOURCE, contents

LAYOUTS = ("ixi", "coco", "staining", "cermep", "folder")


def small(name: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any], Data]:
    """Source, preparation and description of a layout's smallest data."""
    if name == "ixi":
        return SOURCE, PREPARATION, DATA
    if name == "folder":
        for case in ("one", "two", "three", "four"):
            write_case(folder / "scans", case, pair())
        splits = {"validate": 0.25, "test": 0.25}
        return {"kind": "path", "path": str(folder / "scans")}, {"splits": splits}, data()
    tree = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    tree["scales"]["demo"][name] = params.merge({"data": {}, "preparation": {}, "training": {}}, SMALLEST[name])
    return params.source(tree, name), params.preparation(tree, name), params.data_settings(tree, name)


@pytest.mark.parametrize("name", LAYOUTS)
def test_killed_at_every_case(name: str, tmp_path: Path) -> None:
    """Tiny scans, without registration: about a second a layout."""
    kind = KINDS[name]
    write(tmp_path / "scans", kind, kind.files())
    run_raw(kind, tmp_path)
    kill_at_every_case(stage_arguments(kind, tmp_path), tmp_path, light=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", LAYOUTS)
def test_phantoms_killed_at_every_case(name: str, tmp_path: Path) -> None:
    """With all that preparation computes."""
    source, preparation, wanted = small(name, tmp_path)
    raw.run(source, name, tmp_path / "raw")
    arguments = {"preparation": preparation, "data": wanted, "name": name, "raw": tmp_path / "raw"}
    kill_at_every_case(arguments, tmp_path)


def kill_at_every_case(arguments: dict[str, Any], top: Path, light: bool = False) -> None:
    """Runs that each finish the case at which the last one died, and die at the next, against one undisturbed run."""

    def run(folder: Path, kill_at: int = 0) -> bool:
        places = {"out": folder / "out", "work": folder / "work", "sheets": folder}
        return prepare_until_killed(arguments | places, folder / "log", kill_at, light)

    whole, killed = top / "whole", top / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    assert not run(whole)
    info = read_json(whole / "out" / "dataset.json")
    cases = [case for split in info["splits"].values() for case in split]
    assert len(cases) >= 3
    assert sorted((whole / "log").read_text().split()) == sorted(cases)

    marks = len(cases) + len(info["skipped"])  # a case that is skipped is marked as well
    for number in range(1, marks + 1):
        assert run(killed, kill_at=min(number, 2))
        assert not (killed / "out").exists()
        finished = list((killed / "work").glob("*/*/facts/[!.]*.json"))
        assert len(finished) == number - 1
    assert not run(killed)
    assert contents(killed / "out") == contents(whole / "out")
    done = Counter((killed / "log").read_text().split())
    assert done == dict.fromkeys(cases, 2)  # once more for the kill at it, and never for another's
