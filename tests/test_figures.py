"""The figure of one sample's whole pass: what it shows of every method, where its grids lie, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import small_methods
from equisynth import cli, figures
from equisynth.config import Settings
from equisynth.datasets.prepared import DatasetInfo, PreparedDataset, write_case, write_info
from equisynth.errors import UserError
from equisynth.geometry.transforms import Affine, Field, Image
from equisynth.methods.base import Overview, build_method

RANDOM = {"rotation_degrees": (-20, 20), "translation": (-2, 2)}


def make_dataset(folder: Path, chosen: Settings, shape: tuple[int, ...], known: bool = True) -> PreparedDataset:
    """One case per split; the last rows of its images are invalid."""
    random = np.random.RandomState(0)
    mask = np.ones(shape, np.uint8)
    mask[-6:] = 0
    arrays: dict[str, Any] = {"input": random.rand(*shape), "label": random.rand(*shape), "mask": mask}
    if known:
        arrays |= {"label_aligned": random.rand(*shape), "deformation": random.rand(len(shape), *shape)}
    for case in "abc":
        write_case(folder, case, arrays, np.eye(4), len(shape))
    splits = {"train": ("a",), "validate": ("b",), "test": ("c",)}
    write_info(folder, DatasetInfo.model_validate(chosen.data.model_dump() | {"name": "none", "splits": splits}))
    return PreparedDataset.open(folder)


def titled(figure: Figure) -> dict[str, Axes]:
    """The axes that show something, by the first line of their titles."""
    shown = [ax for ax in figure.axes if ax.images or ax.collections]
    assert all(ax.get_title() for ax in shown), "every picture is labelled"
    found = {ax.get_title().splitlines()[0]: ax for ax in shown}
    assert len(found) == len(shown)
    return found


def draw(method: str, folder: Path, known: bool = True, **changes: Any) -> Figure:
    chosen = small_methods.settings(method, **{"random_transformation": RANDOM} | changes)
    shape = tuple(side + 8 if side > 1 else 3 for side in chosen.patch_size)
    built = build_method(chosen)
    built.train(False)
    return figures.draw(figures.sample(built, make_dataset(folder, chosen, shape, known), "c"), "title")


# --- what it shows


@pytest.mark.parametrize("method", small_methods.FIELDS)
def test_every_method_shows_what_it_has(method: str, tmp_path: Path) -> None:
    found = titled(draw(method, tmp_path))
    assert {"x, input", "y, label", "aligned label, the truth", "true deformation"} <= found.keys()
    assert sum("output" in name for name in found) == 1
    assert len(found) >= 7


def test_the_equivariant_method_shows_its_whole_pass(tmp_path: Path) -> None:
    assert list(titled(draw("equivariant", tmp_path, known=False))) == [
        "x, input", "x∘r", "F(x), output", "F(x∘r)", "F(x)∘r", "F(x∘r)∘r⁻¹∘φ_i⁻¹", "F(x)∘d⁻¹",
        "y, label", "y∘T", "y∘d_cross", "y∘d_cross∘r", "y∘d",
        "r, random", "T, rigid", "φ_c, cross-modality", "d_cross = T∘φ_c", "φ_i, intra-modality", "d = d_cross∘φ_i",
        "d⁻¹",
    ]  # fmt: skip


def test_volumes_and_slices_of_volumes(tmp_path: Path) -> None:
    volume = draw("equivariant", tmp_path / "volume", n_dims=3)
    assert "axial slice 4" in volume.get_suptitle()
    assert "d⁻¹" in titled(volume)
    slices = draw("nemar", tmp_path / "slices", n_dims=3, slices=True, patch_size=(36, 32, 1), random_transformation={})
    assert {"R, registration", "true deformation", "aligned label, the truth"} <= titled(slices).keys()
    assert titled(slices)["x, input"].images[0].get_array().shape == (32, 36, 3)  # the first axis to the right


def test_the_random_deformation_follows_from_the_case_alone(tmp_path: Path) -> None:
    chosen = small_methods.settings("supervised", random_transformation=RANDOM)
    dataset, method = make_dataset(tmp_path, chosen, (20, 16)), build_method(chosen)
    found = [figures.sample(method, dataset, case).overview.deformations["r, random"] for case in ("b", "c", "c")]
    matrices = [each.matrix for each in found if isinstance(each, Affine)]
    assert torch.equal(matrices[1], matrices[2])
    assert not torch.equal(matrices[0], matrices[1])


# --- where things lie


def overview_of(displacement: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None = None) -> figures.Sample:
    n_dims = displacement.shape[1]
    chosen = small_methods.settings("equivariant", n_dims=n_dims, patch_size=tuple(displacement.shape[2:]))
    image = Image(values, mask)
    overview = Overview({"x": image}, {"F(x)": image}, {"y": image}, {"d": Field(displacement)})
    return figures.Sample(overview, chosen, "place", "mm")


def lines(ax: Axes) -> list[np.ndarray[Any, Any]]:
    """Where lines are drawn, (N, 2) columns and rows: those across, and those along."""
    return [np.concatenate([path.vertices for path in each.get_paths()]) for each in ax.collections]


def test_a_grid_moves_against_a_shift_as_an_image_does() -> None:
    """Read three rows further down, an image appears three rows further up, and so do the lines of its grid."""
    still, moved = torch.zeros(1, 2, 32, 32), torch.zeros(1, 2, 32, 32)
    moved[:, 0] = 0.75
    rows = []
    for field in (still, moved):
        ax = titled(figures.draw(overview_of(field, torch.zeros(1, 1, 32, 32)), "t"))["d"]
        assert ax.get_title() == f"d\nmean {float(field.norm(dim=1).mean()):.2g} mm"
        assert ax.get_xlim() == (-0.5, 31.5)
        assert ax.get_ylim() == (31.5, -0.5)  # rows down
        across, along = lines(ax)
        assert np.ptp(np.diff(np.unique(across[:, 1].round(4)))) < 1e-3  # evenly spaced rows
        np.testing.assert_allclose(np.unique(along[:, 0].round(4))[:3], [1.5, 3.5, 5.5])
        rows.append(np.unique(across[:, 1].round(4)))
    np.testing.assert_allclose(rows[0][:3], [1.5, 3.5, 5.5])  # one through the middle, 15.5, and every second pixel
    np.testing.assert_allclose(rows[1][:3], [0.75, 2.75, 4.75])


def test_an_axial_slice_lies_with_its_first_axis_to_the_right_and_its_second_up() -> None:
    values = torch.zeros(1, 1, 8, 16, 8)
    values[0, 0, 6, 1, 4] = 1
    mask = torch.ones(1, 1, 8, 16, 8)
    mask[0, 0, 0] = 0
    field = torch.zeros(1, 3, 8, 16, 8)
    field[:, 1] = 0.25  # reads further along the second axis: lines move back along it, downwards
    found = titled(figures.draw(overview_of(field, values, mask), "t"))
    picture = found["x"].images[0].get_array()
    assert picture.shape == (16, 8, 3)
    assert tuple(picture[14, 6]) == (255, 255, 255)
    assert (picture[:, 0] == figures.INVALID).all()
    across, _ = lines(found["d"])
    assert 7.5 + 0.25 in np.unique(across[:, 1].round(4))  # the middle line
    assert found["x"].get_aspect() == pytest.approx(0.8)  # voxels of 1.0 x 0.8


def test_affine_transformations_are_drawn_as_their_fields() -> None:
    flat = overview_of(torch.zeros(1, 2, 32, 32), torch.zeros(1, 1, 32, 32))
    shift = torch.eye(3)[None].clone()
    shift[0, 0, 2] = 0.75
    sample = figures.Sample(flat.overview._replace(deformations={"T": Affine(shift)}), flat.settings, "place", "mm")
    across, _ = lines(titled(figures.draw(sample, "t"))["T"])
    np.testing.assert_allclose(np.unique(across[:, 1].round(4))[:2], [0.75, 2.75])


def test_the_most_valid_patch_is_shown(tmp_path: Path) -> None:
    chosen = small_methods.settings("supervised", patch_size=(8, 8))
    dataset = make_dataset(tmp_path, chosen, (24, 8))  # the last six rows are invalid
    assert figures.most_valid_patch(dataset, chosen, "c") == (8, 0)  # as valid as the first patch, and central
    evaluated = np.zeros((24, 8), np.uint8)
    evaluated[16:] = 1
    write_case(tmp_path / "one", "c", {"evaluation_mask": evaluated}, np.eye(4), 2)
    (tmp_path / "one/cases/c/evaluation_mask.nii").rename(tmp_path / "cases/c/evaluation_mask.nii")
    assert figures.most_valid_patch(PreparedDataset.open(tmp_path), chosen, "c") == (16, 0)


# --- the command


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    chosen = small_methods.settings("supervised", random_transformation=RANDOM)
    small_methods.write_model(tmp_path / "models/any", chosen)
    make_dataset(tmp_path / "data", chosen, (20, 16))
    monkeypatch.chdir(tmp_path)
    return chosen


def test_a_file_is_written_and_named(model: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    figures.run("any", Path("data"))
    assert capsys.readouterr().out == "reports/figures/any/test-c.png\n"
    assert matplotlib.image.imread("reports/figures/any/test-c.png").std() > 0.01
    figures.run("any", Path("data"), "b", "validate", Path("own/name.png"))
    assert Path("own/name.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"experiment": "other"}, r"^models/other/model\.json: not found; .*dvc repro"),
        ({"case": "z"}, r"^--case z: found no such case in split test, expected one of: c$"),
        ({"split": "tests"}, r"^split 'tests': unknown; .*train, validate, test"),
        (
            {"output": Path("figure.jpg")},
            r"^--output figure\.jpg: expected the name of a PNG file, such as figure\.png",
        ),
    ],
)
def test_wrong_names_are_one_clear_error(model: Settings, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        figures.run(**({"experiment": "any", "prepared": Path("data")} | arguments))
    assert not Path("reports").exists()


def test_the_command_asks_for_an_experiment_that_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["figures", "ixi-nothing"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "ixi-nothing" in error
