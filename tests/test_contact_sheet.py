"""The picture sheet: what is on it, that it stays small, and that large images are not read whole."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.contour import QuadContourSet
from PIL import Image

from equisynth.contact_sheet import LARGEST_FILE, SIDE, draw_sheet, sheet_png
from equisynth.datasets.prepared import DatasetInfo, PreparedDataset, write_case, write_info
from own_data import data, picture, volume

CASES = {"train": ("a", "b", "c"), "validate": ("d",), "test": ("e",)}


def dataset(folder: Path, arrays: dict[str, np.ndarray], n_dims: int, channels: int = 1) -> PreparedDataset:
    fields: dict[str, Any] = data(n_dims, channels).model_dump()
    write_info(folder, DatasetInfo(**fields, name="toy", splits=CASES))
    for case in (case for cases in CASES.values() for case in cases):
        write_case(folder, case, arrays, np.diag([*fields["voxel_size"], *[1.0] * (4 - n_dims)]), n_dims)
    return PreparedDataset.open(folder)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> PreparedDataset:
    image, label = (np.asarray(volume(role).dataobj) for role in ("input", "label"))
    half = np.ones(image.shape, np.uint8)
    half[:5] = 0
    arrays = {"input": image, "label": label, "label_mask": half, "evaluation_mask": (image > 20).astype(np.uint8)}
    return dataset(tmp_path_factory.mktemp("volumes"), arrays, 3)


def drawn(figure: Any, columns: int) -> np.ndarray:
    return np.array(figure.axes, dtype=object).reshape(-1, columns)


def test_volumes(volumes: PreparedDataset) -> None:
    figure = draw_sheet(volumes, per_split=2)
    axes = drawn(figure, 9)
    assert axes.shape == (4, 9)  # two, one and one case; three images in three planes
    shape = volumes.shape("a")
    for column in range(9):
        across = column % 3
        expected = tuple(size for axis, size in enumerate(shape) if axis != across)[::-1]
        assert axes[0, column].images[0].get_array().shape == expected
    outlined = [sum(isinstance(c, QuadContourSet) for c in ax.collections) for ax in axes[0]]
    assert outlined == [1, 1, 1, 1, 2, 2, 0, 0, 0]  # the label's mask covers the middle sagittal slice
    assert not any(isinstance(c, QuadMesh) for ax in axes.ravel() for c in ax.collections)
    assert {text.get_text() for legend in figure.legends for text in legend.get_texts()} == {
        "label mask", "evaluation mask",
    }  # fmt: skip
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["train\na", "train\nb", "validate\nd", "test\ne"]


def test_squares_show_both_images(volumes: PreparedDataset) -> None:
    axes = drawn(draw_sheet(volumes, per_split=1), 9)
    first, second, both = (np.asarray(axes[0, column].images[0].get_array()) for column in (2, 5, 8))
    from_first, from_second = both == first, both == second
    assert (from_first | from_second).all()
    assert from_first.mean() < 1
    assert from_second.mean() < 1


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures(tmp_path: Path, channels: int) -> None:
    image, label = (picture(role, channels=channels) for role in ("input", "label"))
    image[0, -1] = 255  # the upper right corner
    axes = drawn(draw_sheet(dataset(tmp_path, {"input": image, "label": label}, 2, channels), per_split=1), 3)
    assert axes.shape == (3, 3)
    shown = np.asarray(axes[0, 0].images[0].get_array())
    assert shown.shape == image.shape
    assert np.all(shown[0, -1] == 1)
    assert axes[0, 0].images[0].origin == "upper"


def test_pictures_without_labels(tmp_path: Path) -> None:
    fields: dict[str, Any] = data(2, 3).model_dump()
    write_info(tmp_path, DatasetInfo(**fields, name="toy", splits=CASES, stored=("input",)))
    for case in (case for cases in CASES.values() for case in cases):
        write_case(tmp_path, case, {"input": picture(channels=3)}, np.eye(4), 2)
    axes = drawn(draw_sheet(PreparedDataset.open(tmp_path), per_split=1), 1)
    assert axes.shape == (3, 1)
    assert axes[0, 0].get_title() == f"input ({fields['input']['modality']})"
    axes = drawn(draw_sheet(PreparedDataset.open(tmp_path), per_split=2), 2)
    assert [ax.get_xlabel() for ax in axes.ravel()] == ["a", "b", "d", "", "e", ""]
    assert [ax.get_ylabel() for ax in axes[:, 0]] == ["train", "validate", "test"]


def test_regions_are_outlined(tmp_path: Path) -> None:
    image = np.asarray(volume("input").dataobj)
    body = (image > 20).astype(np.uint8)
    axes = drawn(draw_sheet(dataset(tmp_path, {"input": image, "label": image, "input_body_mask": body}, 3), 1), 9)
    outlined = [sum(isinstance(c, QuadContourSet) for c in ax.collections) for ax in axes[0]]
    assert outlined == [1, 1, 1, 0, 0, 0, 0, 0, 0]


def test_file(volumes: PreparedDataset) -> None:
    content = sheet_png(volumes)
    assert content == sheet_png(volumes)
    assert len(content) < LARGEST_FILE
    with Image.open(io.BytesIO(content)) as sheet:
        assert 800 < sheet.width < 2000
        assert sheet.format == "PNG"


def test_noise_still_makes_a_small_file(tmp_path: Path) -> None:
    noise = np.random.RandomState(0).randint(0, 255, (900, 1100, 3)).astype(np.uint8)
    arrays = {"input": noise, "label": noise[::-1].copy()}
    found = dataset(tmp_path, arrays, 2, 3)
    assert len(sheet_png(found, per_split=3)) <= LARGEST_FILE


def test_large_images_are_thinned(tmp_path: Path) -> None:
    image = np.repeat(picture(shape=(20, 5000), channels=1), 2, axis=0)
    axes = drawn(draw_sheet(dataset(tmp_path, {"input": image, "label": image}, 2), per_split=1), 3)
    assert max(axes[0, 0].images[0].get_array().shape) <= SIDE
