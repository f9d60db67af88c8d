"""`equisynth predict` of many images: names, resuming, failures, several processes, the summary."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from PIL import Image

from dicom_series import oblique, write_series
from equisynth import cli, cohort_run
from equisynth.apply import Request, predict_file
from equisynth.description import FORMAT, Description, write_description
from equisynth.errors import UserError
from equisynth.methods.base import build_method
from equisynth.model import network_states, save_weights
from test_training import settings

SHAPE = (12, 10, 9)
PAGE = Path(__file__).parents[1] / "docs/how-to/predict-cohorts.md"


def write_model(folder: Path, seed: int = 0, **changes: Any) -> str:
    """A supervised model of volumes T2 -> PD."""
    input_, label = ({"modality": name, "signal_range": 1.0, "unit": "none"} for name in ("T2", "PD"))
    data = {"n_dims": 3, "voxel_size": [2, 2, 2], "input": input_, "label": label, "licence": "none"}
    small = {"features": {"i2i": [2, 2]}, "normalization_groups": 2, "loss": {"similarity_weight": 1.0}}
    fields = {"data": data, "patch_size": [8, 8, 8], "inference_stride": [4, 4, 4], **small, **changes}
    chosen = settings(method="supervised", seed=seed, **fields)
    save_weights(folder / "model.safetensors", network_states(build_method(chosen).networks))
    write_description(folder, Description(format=FORMAT, settings=chosen, preparation={}, best_epoch=1, selection=0.5))
    return str(folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("other"), seed=1)


def write_scan(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = (np.random.RandomState(seed).rand(*SHAPE) + 1).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2, 2, 2, 1])), path)
    return path


def tree(folder: Path) -> Path:
    """A BIDS tree of three subjects."""
    for number in (1, 2, 3):
        write_scan(folder / f"sub-{number}/anat/sub-{number}_T2w.nii.gz", number)
    return folder


def run(inputs: Path | list[Path], model: str, output: Path, **options: Any) -> int:
    known = {key: options.pop(key) for key in ("pattern", "t1", "jobs", "scheduler") if key in options}
    request = Request(Path(), model, output, **{"device": "cpu", **options})
    return cohort_run.run([inputs] if isinstance(inputs, Path) else inputs, request, **known)


def summary(output: Path) -> dict[str, Any]:
    return json.loads((output / "summary.json").read_text())


def statuses(output: Path) -> list[str]:
    return [case["status"] for case in summary(output)["cases"]]


def test_a_bids_tree_becomes_derivatives(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    assert run(tree(tmp_path / "in"), model, output) == 0
    names = [f"sub-{n}/anat/sub-{n}_desc-synthesised_PDw.nii.gz" for n in (1, 2, 3)]
    assert capsys.readouterr().out.splitlines() == [str(output / name) for name in names]
    for number, name in enumerate(names, 1):
        predict_file(
            Request(
                tmp_path / f"in/sub-{number}/anat/sub-{number}_T2w.nii.gz",
                model,
                tmp_path / f"{number}.nii",
                device="cpu",
            )
        )
        one, found = nibabel.load(tmp_path / f"{number}.nii"), nibabel.load(output / name)
        assert np.array_equal(found.get_fdata(), one.get_fdata())
        assert np.array_equal(found.affine, one.affine)
        record = json.loads((output / name.replace(".nii.gz", ".json")).read_text())
        assert record["input"] == f"sub-{number}_T2w.nii.gz"
        assert set(record["files"]) == {"input", "output"}
    described = json.loads((output / "dataset_description.json").read_text())
    assert described["DatasetType"] == "derivative"
    assert described["GeneratedBy"][0]["Name"] == "equisynth"
    found = summary(output)
    assert (found["done"], found["skipped"], found["failed"]) == (3, 0, 0)
    with open(output / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["output"] for row in rows] == names
    assert "taken as it is" in rows[0]["warnings"]


def test_the_same_command_continues(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Finished cases are skipped; one whose output was lost, or whose input has changed, is translated again."""
    given, output = tree(tmp_path / "in"), tmp_path / "out"
    assert run(given, model, output) == 0
    first = output / "sub-1/anat/sub-1_desc-synthesised_PDw.nii.gz"
    before = first.stat().st_mtime_ns
    (output / "sub-2/anat/sub-2_desc-synthesised_PDw.nii.gz").unlink()  # a kill between record and output
    write_scan(given / "sub-3/anat/sub-3_T2w.nii.gz", 9)
    capsys.readouterr()
    assert run(given, model, output) == 0
    assert statuses(output) == ["skipped", "done", "done"]
    assert first.stat().st_mtime_ns == before
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert "taken as it is" in summary(output)["cases"][0]["warnings"][0]
    assert run(given, model, output, force=True) == 0
    assert statuses(output) == ["skipped"] * 3


def test_an_interruption_leaves_whole_cases_and_a_summary(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, output, real = tree(tmp_path / "in"), tmp_path / "out", cohort_run.translate

    def interrupted(loaded: Any, request: Request, progress: Any = None) -> Any:
        if "sub-2" in request.image.name:
            raise KeyboardInterrupt
        return real(loaded, request, progress)

    monkeypatch.setattr(cohort_run, "translate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(given, model, output)
    assert statuses(output) == ["done", "left", "left"]
    monkeypatch.undo()
    assert run(given, model, output) == 0
    assert statuses(output) == ["skipped", "done", "done"]


def test_a_bad_case_does_not_stop_the_others(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given, output = tree(tmp_path / "in"), tmp_path / "out"
    path = given / "sub-2/anat/sub-2_T2w.nii.gz"
    path.write_bytes(path.read_bytes()[:-40])
    (given / "sub-4/anat").mkdir(parents=True)
    (given / "sub-4/anat/sub-4_T2w.nii.gz").symlink_to("not-fetched")
    assert run(given, model, output) == cohort_run.FAILED
    assert statuses(output) == ["done", "failed", "done", "failed"]
    errors = [line for line in capsys.readouterr().err.splitlines() if "failed:" in line]
    assert [line.split(":")[2].strip() for line in errors] == [f"sub-{n}/anat/sub-{n}_T2w.nii.gz" for n in (2, 4)]
    assert "damaged" in errors[0]
    assert not (output / "sub-2/anat").exists() or not list((output / "sub-2/anat").iterdir())
    write_scan(path)
    (given / "sub-4/anat/sub-4_T2w.nii.gz").unlink()
    assert run(given, model, output) == 0
    assert statuses(output) == ["skipped", "done", "skipped"]


def test_several_processes_write_the_same(model: str, tmp_path: Path) -> None:
    given = tree(tmp_path / "in")
    (given / "sub-2/anat/sub-2_T2w.nii.gz").write_bytes(b"")
    assert run(given, model, tmp_path / "one") == cohort_run.FAILED
    assert run(given, model, tmp_path / "two", jobs=2) == cohort_run.FAILED
    assert statuses(tmp_path / "two") == statuses(tmp_path / "one") == ["done", "failed", "done"]
    for number in (1, 3):
        name = f"sub-{number}/anat/sub-{number}_desc-synthesised_PDw.nii.gz"
        one, two = (nibabel.load(tmp_path / out / name).get_fdata() for out in ("one", "two"))
        assert np.allclose(one, two, atol=1e-6)


def of_another_model(given: Path, output: Path, model: str, other: str) -> dict[str, Any]:
    run(given, other, output)
    return {}


def with_other_options(given: Path, output: Path, model: str, other: str) -> dict[str, Any]:
    run(given, model, output)
    return {"flips": "all"}


def of_somebody(given: Path, output: Path, model: str, other: str) -> dict[str, Any]:
    write_scan(output / "sub-1/anat/sub-1_desc-synthesised_PDw.nii.gz")
    return {}


@pytest.mark.parametrize(
    ("arrange", "message"),
    [
        (of_another_model, "was made by another model"),
        (with_other_options, "or with other options .*flips none"),
        (of_somebody, "exists already and was not made by equisynth"),
    ],
)
def test_what_something_else_made_is_kept(
    model: str, other_model: str, tmp_path: Path, arrange: Callable[..., dict[str, Any]], message: str
) -> None:
    given, output = tree(tmp_path / "in"), tmp_path / "out"
    options = arrange(given, output, model, other_model)
    first = output / "sub-1/anat/sub-1_desc-synthesised_PDw.nii.gz"
    before = first.read_bytes()
    with pytest.raises(UserError, match=message):
        run(given, model, output, **options)
    assert first.read_bytes() == before
    assert run(given, model, output, force=True, **options) == 0
    assert statuses(output) == ["done"] * 3
    assert first.read_bytes() != before


def test_options_that_do_not_fit_are_told_before_anything_is_written(model: str, tmp_path: Path) -> None:
    given = tree(tmp_path / "in")
    for options, message in (
        ({"mask": given}, "--mask .*: belongs to one image"),
        ({"precision": "half"}, "--precision"),
        ({"flips": "trained"}, "--flips trained"),
        ({"device": "tpu"}, "--device tpu"),
        ({"device": "meta", "jobs": 2}, "--jobs 2: one process uses meta"),
    ):
        with pytest.raises(UserError, match=message):
            run(given, model, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="out.nii: is a file; several images need a folder"):
        run(given, model, tmp_path / "out.nii")


def test_a_dicom_series_is_translated_where_it_lies(model: str, tmp_path: Path) -> None:
    image = oblique((2.0, 2.0, 2.0))
    write_series(tmp_path / "in/anna", image)
    assert run(tmp_path / "in", model, tmp_path / "out") == 0
    found = SimpleITK.ReadImage(str(tmp_path / "out/anna_synthesised-PD.nii.gz"))
    for index in ((0, 0, 0), (15, 13, 9)):
        assert np.allclose(*(one.TransformIndexToPhysicalPoint(index) for one in (image, found)), atol=1e-3)
    record = json.loads((tmp_path / "out/anna_synthesised-PD.json").read_text())
    assert record["parameters"]["dicom"]["slices"] == 10
    assert "RAS" in record["parameters"]["dicom"]["coordinates"]
    assert run(tmp_path / "in", model, tmp_path / "out") == 0
    assert statuses(tmp_path / "out") == ["skipped"]
    predict_file(Request(tmp_path / "in/anna", model, tmp_path / "one.nii.gz", device="cpu"))
    assert (tmp_path / "one.json").exists()


def test_pictures_keep_their_names(tmp_path: Path) -> None:
    colours = {"modality": "A", "unit": "8 bit", "signal_range": 255.0, "channels": 3, "mean": [0] * 3, "std": [1] * 3}
    data = {"n_dims": 2, "voxel_size": [1, 1], "input": colours, "label": colours, "licence": "none"}
    photos = write_model(tmp_path / "model", data=data, patch_size=[8, 8], inference_stride=[4, 4])
    (tmp_path / "in").mkdir()
    picture = np.random.RandomState(0).randint(1, 255, (20, 30, 3)).astype(np.uint8)
    for name, values in (("a.png", picture), ("b.jpg", picture), ("c.tif", picture), ("grey.png", picture[..., 0])):
        Image.fromarray(values).save(tmp_path / "in" / name)
    assert run(tmp_path / "in", photos, tmp_path / "out", batch=3, flips="all") == cohort_run.FAILED
    found = {case["case"]: (case["status"], case["reason"]) for case in summary(tmp_path / "out")["cases"]}
    assert [found[name][0] for name in ("a.png", "b.jpg", "c.tif", "grey.png")] == ["done"] * 3 + ["failed"]
    assert "is grey, the model expects colours" in found["grey.png"][1]
    for name in ("a_synthesised-A.png", "b_synthesised-A.png", "c_synthesised-A.tif"):
        assert Image.open(tmp_path / "out" / name).size == (30, 20)


def test_the_command_line_ends_with_the_code(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "in")
    options = ["--model", model, "--output", "out", "--device", "cpu"]
    for code in (0, 1):
        with pytest.raises(SystemExit) as caught:
            cli.main(["predict", "in", *options])
        assert caught.value.code == code
        (tmp_path / "in/sub-3/anat/sub-3_T2w.nii.gz").write_bytes(b"")
    assert capsys.readouterr().err.splitlines()[-1] == "equisynth: 2 skipped, 1 failed; see out/summary.csv"


def test_the_command_line_ignores_no_option_of_cohorts(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But where the environment names a cluster: one image is translated here."""
    monkeypatch.chdir(tmp_path)
    write_scan(tmp_path / "a.nii")
    one = ["predict", "a.nii", "--model", model, "--output", "b.nii", "--device", "cpu"]
    stage = ["predict", "--experiment", "ixi-x"]
    for words, message in (
        ([*one, "--pattern", "*_T2*"], "--pattern *_T2*: is for several images"),
        ([*one, "--jobs", "2"], "--jobs 2: is for several images"),
        ([*one, "--scheduler", "tcp://a:1"], "--scheduler tcp://a:1: is for several images"),
        *(
            ([*stage, *more], "--experiment stands alone")
            for more in (["--jobs", "2"], ["--pattern", "*"], ["--force"])
        ),
        ([*stage, "--scheduler", "tcp://a:1"], "--experiment stands alone"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "b.nii").exists()
    monkeypatch.setenv("EQUISYNTH_SCHEDULER", "tcp://a:1")
    with pytest.raises(SystemExit):
        cli.main(stage)
    assert "params.yaml" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        cli.main(one)
    assert not caught.value.code
    assert (tmp_path / "b.nii").exists()


def test_the_commands_of_the_page_work(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for companions, which this model does not use, and fewer processes."""
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "study")
    for name in ("T2.nii.gz", "a.nii.gz", "b.nii.gz", "scans/c.nii", "more/d.nii"):
        write_scan(tmp_path / name)
    lines = [
        line.split()[1:]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("equisynth predict")
    ]
    assert len(lines) == 4
    for words in lines:
        command = " ".join(words).replace("models:/ixi@champion", model).replace("--t1 T1w --jobs 4", "--jobs 1")
        with pytest.raises(SystemExit) as caught:
            cli.main([*command.split(), "--device", "cpu"])
        assert not caught.value.code
    assert {path.name for path in (tmp_path / "pd").glob("*.nii*")} == {
        "a_synthesised-PD.nii.gz", "b_synthesised-PD.nii.gz", "c_synthesised-PD.nii", "d_synthesised-PD.nii",
    }  # fmt: skip
    assert len(list((tmp_path / "study/derivatives/equisynth").rglob("*_desc-synthesised_PDw.nii.gz"))) == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_what_the_cpu_gives(model: str, tmp_path: Path) -> None:
    given = tree(tmp_path / "in")
    assert run(given, model, tmp_path / "cpu") == 0
    for precision, tolerance in (("no", 1e-3), ("fp16", 2e-2), ("bf16", 1e-1)):
        output = tmp_path / precision
        assert run(given, model, output, device="cuda", batch=8, precision=precision) == 0
        name = "sub-1/anat/sub-1_desc-synthesised_PDw.nii.gz"
        one, two = (nibabel.load(folder / name).get_fdata() for folder in (tmp_path / "cpu", output))
        assert np.allclose(one, two, atol=tolerance)
    with pytest.raises(UserError, match="--jobs 2: one process uses cuda"):
        run(given, model, tmp_path / "out", device="cuda", jobs=2)
