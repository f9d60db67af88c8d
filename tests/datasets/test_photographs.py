"""The phantom of COCO: the public layout, real photographs, the same bytes from a seed."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from equisynth.datasets import photographs
from equisynth.datasets.photographs import PHOTOGRAPHS, SPLITS, Photograph, PhotographSource, make_case, write_archive
from equisynth.errors import UserError
from equisynth.files import sha256

SOURCE = PhotographSource(seed=1, cases={"train": 6, "validate": 2, "test": 3}, longer_side=64, grey_share=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photographs")
    write_archive(SOURCE, path)
    return path


def pictures(folder: Path) -> dict[str, Image.Image]:
    with zipfile.ZipFile(folder / "unlabeled2017.zip") as archive:
        return {name: Image.open(io.BytesIO(archive.read(name))) for name in archive.namelist()}


def test_public_layout(folder: Path) -> None:
    splits = json.loads((folder / "splits.json").read_text(encoding="utf-8"))
    assert {split: len(cases) for split, cases in splits.items()} == SOURCE.cases
    cases = [case for split in SPLITS for case in splits[split]]
    assert all(len(case) == 12 and case.isdigit() for case in cases)
    assert list(pictures(folder)) == [f"unlabeled2017/{case}.jpg" for case in cases]


def test_sizes_and_colours(folder: Path) -> None:
    images = pictures(folder).values()
    assert {image.format for image in images} == {"JPEG"}
    assert {max(image.size) for image in images} == {64}
    assert all(38 <= min(image.size) <= 64 for image in images)
    assert {image.mode for image in images} == {"L", "RGB"}  # some are grey, as in the public archive
    assert all(np.asarray(image).std() > 5 for image in images)
    assert len({image.tobytes() for image in images}) == len(images)


def test_bytes_depend_on_the_source_alone(folder: Path, tmp_path: Path) -> None:
    again = write_archive(SOURCE, tmp_path / "again", jobs=2)
    assert sha256(again) == sha256(folder / "unlabeled2017.zip")
    other = write_archive(SOURCE.model_copy(update={"seed": 2}), tmp_path / "other")
    assert sha256(other) != sha256(again)


def test_a_case_does_not_change_when_others_are_added(folder: Path) -> None:
    more = SOURCE.model_copy(update={"cases": {"train": 60, "validate": 2, "test": 3}})
    with zipfile.ZipFile(folder / "unlabeled2017.zip") as archive:
        name = archive.namelist()[2]
        assert make_case(more, Path(name).stem, "train")[0] == archive.read(name)


def test_no_photograph_serves_two_splits(folder: Path) -> None:
    origins = json.loads((folder / "photographs.json").read_text(encoding="utf-8"))
    splits = json.loads((folder / "splits.json").read_text(encoding="utf-8"))
    used = {split: {origins[case]["file"] for case in cases} for split, cases in splits.items()}
    assert not used["train"] & used["test"]
    assert not used["train"] & used["validate"]
    assert not used["validate"] & used["test"]
    assert all(origin["licence"] and origin["credit"] for origin in origins.values())


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_every_split_has_photographs_of_either_kind(split: str, share: float) -> None:
    source = SOURCE.model_copy(update={"grey_share": share})
    content, photograph = make_case(source, "000000000008", split)
    assert photograph.grey == (share == 1)
    assert Image.open(io.BytesIO(content)).mode == ("L" if share else "RGB")


@pytest.mark.parametrize("photograph", PHOTOGRAPHS, ids=lambda photograph: photograph.file)
def test_photographs_are_in_the_packages(photograph: Photograph) -> None:
    """Larger than any crop needs at the public size to be sharp, and read without a download."""
    values = photographs.read(photograph)
    assert values.dtype == np.uint8
    assert values.ndim == (2 if photograph.grey else 3)
    assert min(values.shape[:2]) >= 300


def test_a_missing_photograph_is_named() -> None:
    lost = Photograph("lost.png", "skimage/data", "train", False, "nothing", "nobody", "none")
    with pytest.raises(UserError, match=r"skimage/data/lost\.png: not found; install scikit-image"):
        photographs.read(lost)


def test_all_splits_need_a_number() -> None:
    with pytest.raises(ValueError, match="train, validate, test"):
        PhotographSource(cases={"train": 3})
