"""Pictures: what they show, in the right place; the page that holds them; the stage on a small dataset."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from equisynth import report, store
from equisynth.contact_sheet import sheet_png
from equisynth.datasets.prepared import DatasetInfo, PreparedDataset, write_case, write_info
from equisynth.errors import UserError
from equisynth.files import atomic_path, read_json, write_json
from mlflow_repository import make_metrics, make_settings, write_model

pytest_plugins = ["mlflow_repository"]
RANDOM = np.random.RandomState(0)


def make_case(shape: tuple[int, ...] = (12, 10, 8), aligned: bool = True, channels: int = 1) -> report.CasePictures:
    full = shape if channels == 1 else (*shape, channels)
    label = RANDOM.rand(*full).astype(np.float32)
    return report.CasePictures(
        name="case1",
        n_dims=len(shape),
        voxel_size=(1.0, 1.0, 2.0)[: len(shape)],
        input=RANDOM.rand(*full).astype(np.float32),
        prediction=label + 0.1,
        aligned=label if aligned else None,
        label=label[::-1],
        mask=np.ones(shape, np.uint8),
        modalities=("T2", "PD"),
    )


def images(figure):
    return [ax.images[0] for ax in figure.axes if ax.images]


def test_a_case_is_drawn_across_every_axis_with_its_error_against_the_aligned_label() -> None:
    case = make_case()
    figure = report.draw_case(case)
    drawn = images(figure)
    assert len(drawn) == 3 * 5
    titles = [ax.get_title() for ax in figure.axes[:5]]
    assert titles == ["input (T2)", "prediction (PD)", "aligned label (PD)", "label as trained on (PD)", "error"]
    np.testing.assert_array_equal(drawn[0].get_array(), case.input[6].T)
    np.testing.assert_array_equal(drawn[5].get_array(), case.input[:, 5].T)
    for row in range(3):
        np.testing.assert_allclose(drawn[5 * row + 4].get_array(), 0.1, rtol=1e-5)


def test_the_error_is_hidden_outside_the_mask() -> None:
    case = make_case()
    case.mask[:6] = 0
    error = np.ma.filled(images(report.draw_case(case))[9].get_array().astype(float), np.nan)  # across the second axis
    assert np.isnan(error[:, :6]).all()
    assert np.isfinite(error[:, 6:]).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_2d_and_colour_and_no_aligned_label(channels: int) -> None:
    case = make_case((12, 10), aligned=False, channels=channels)
    drawn = images(report.draw_case(case))
    assert len(drawn) == 4
    assert all((image.origin, image.get_array().shape[:2]) == ("upper", (12, 10)) for image in drawn)  # rows go down
    assert report.to_png(report.draw_case(case)).startswith(b"\x89PNG")


def test_the_grid_is_drawn_where_the_deformation_takes_it() -> None:
    displacement = np.zeros((3, 8, 8, 8), np.float32)
    displacement[0] = 2.0  # along the first axis
    figure = report.draw_deformation(displacement, (1.5, 1.0, 1.0), "shift")
    sagittal, coronal, axial = [ax for ax in figure.axes if ax.lines]
    np.testing.assert_array_equal(coronal.lines[0].get_xdata(), np.full(8, 2.0))  # the line at 0 now lies at 2
    np.testing.assert_array_equal(axial.lines[0].get_xdata(), np.full(8, 2.0))
    np.testing.assert_array_equal(sagittal.lines[0].get_xdata(), np.zeros(8))  # in this plane nothing moves
    np.testing.assert_allclose(coronal.images[0].get_array(), 3.0)  # 2 voxels of 1.5


def test_the_grid_of_a_picture_lies_as_the_picture_does() -> None:
    displacement = np.zeros((2, 12, 8), np.float32)
    displacement[0] = 3.0  # rows, downwards
    ax = report.draw_deformation(displacement, (1.0, 1.0), "shift").axes[0]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), np.full(8, 3.0))
    assert (ax.get_xlim(), ax.get_ylim()) == ((-0.5, 7.5), (11.5, -0.5))
    assert ax.images[0].get_array().shape == (12, 8)


def test_curves_have_one_plot_per_value_validation_first() -> None:
    history = [
        {"epoch": float(e), "train/a": 1 / e, "train/b": 2 / e, "validation/selection": 3 / e} for e in (1, 2, 3)
    ]
    figure = report.draw_curves(history, best_epoch=3)
    assert [ax.get_title() for ax in figure.axes if ax.lines] == ["validation/selection", "train/a", "train/b"]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [3, 1.5, 1])


def test_pictures_are_the_same_bytes_each_time() -> None:
    displacement = RANDOM.rand(2, 9, 9).astype(np.float32)
    first, second = (report.to_png(report.draw_deformation(displacement, (1, 1), "field")) for _ in range(2))
    assert first == second
    assert matplotlib.image.imread(BytesIO(first)).std() > 0.01


def test_the_page_needs_no_other_file_and_escapes_names() -> None:
    page = report.to_html("a<b", "note", {"test/mae": 0.123456789, "fid/reason": "<none>"}, {"p": b"png"})
    assert "a&lt;b" in page
    assert "0.12346" in page
    assert "&lt;none&gt;" in page
    assert not re.search(r"(src|href)='(?!data:)", page)


def test_the_stage_writes_pictures_and_logs_them_to_the_run(repository: Path) -> None:
    from equisynth.stages import report as stage
    from equisynth.tracking import run_of

    settings = make_settings()
    cases = {"train": ("a",), "validate": ("b",), "test": ("c", "d")}
    folder = Path("data/prepared/ixi")
    write_info(folder, DatasetInfo(name="ixi", splits=cases, **settings.data.model_dump()))
    for case in "abcd":
        values = {role: RANDOM.rand(12, 10).astype(np.float32) for role in ("input", "label", "label_aligned")}
        write_case(folder, case, values | {"deformation": RANDOM.rand(2, 12, 10)}, np.eye(4), n_dims=2)
        prediction = {case: RANDOM.rand(12, 10)}
        write_case("scratch", case, prediction, np.eye(4), n_dims=2)
        target = Path("predictions/ixi-noreg/test") / f"{case}.nii"
        target.parent.mkdir(parents=True, exist_ok=True)
        Path(f"scratch/cases/{case}/{case}.nii").rename(target)
    write_model(Path("models/ixi-noreg"), settings)
    write_json("reports/metrics/ixi-noreg.json", make_metrics())
    measured = {"test": {"label": "label_aligned", "cases": {"c": {"mae": 0.1}, "d": {"mae": 0.2}}}}
    write_json("reports/evaluation/ixi-noreg.json", measured)
    with pytest.raises(UserError, match=r"reports/datasets/ixi\.png: not found.*dvc repro prepare@ixi"):
        stage.run("ixi-noreg")
    sheet = sheet_png(PreparedDataset.open(folder))
    with atomic_path("reports/datasets/ixi.png") as path:
        path.write_bytes(sheet)
    stage.run("ixi-noreg")
    names = sorted(path.name for path in Path("reports/pictures/ixi-noreg").iterdir())
    assert names == [
        "0-dataset.png", "1-curves.png", "2-prediction-c.png", "2-prediction-d.png", "3-deformation-c.png",
        "3-deformation-d.png",
    ]  # fmt: skip
    logged = store.open_store().list_artifacts(run_of("ixi-noreg"), "pictures")
    assert [Path(file.path).name for file in logged] == names
    copied = store.open_store().download_artifacts(run_of("ixi-noreg"), "pictures/0-dataset.png")
    assert Path(copied).read_bytes() == sheet
    details = store.open_store().download_artifacts(run_of("ixi-noreg"), "evaluation/ixi-noreg.json")
    assert read_json(details) == measured
    assert Path("reports/ixi-noreg.html").read_text(encoding="utf-8").count("<img") == 6
    shown = read_json("reports/panels/ixi-noreg/panels.json")
    assert [case["chosen"] for case in shown["cases"]] == [["first", "best"], ["first", "worst"]]
