"""Real runs at a size of seconds: what they keep, MLflow, resume after kills, the stage, and the page made of them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import proof_workplace
from equisynth.errors import UserError
from equisynth.files import read_json
from equisynth.proof import page, pictures, protocol, results, stage, training
from killing import kill_in_child
from mlflow_repository import migrated_database  # noqa: F401 - a fixture

EQSIM, NOREG = "proof-photographs-lc_eqsim_com-seed0", "proof-photographs-lc_noreg_aug-seed0"
BRAIN = "proof-brain-eqsim_com_eqadv-seed0"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[Path]:  # noqa: F811
    """All runs of the tiny part, done by the stage in this process."""
    folder = tmp_path_factory.mktemp("proof")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(training.fid, "evaluate", lambda *_, **__: {"computed": False, "reason": "no weights"})
        patch.setattr(training, "code_version", lambda: "code")  # else of the modules that other tests have loaded
        shutil.copy(migrated_database, folder / "mlflow.db")
        proof_workplace.make(folder)
        patch.setattr(stage, "_train_apart", _train_here)
        stage.train("short", jobs=1)
        yield folder


def everything() -> list[Path]:
    return stage.gathered("short", protocol.runs(protocol.read(), "short"))


def _train_here(name: str, device: str) -> None:
    training.train(name)


def test_the_stage_collects_all_runs(workplace: Path) -> None:
    found = results.load(everything())
    assert {run.result["run"]["name"] for run in found} == {run.name for run in protocol.runs(protocol.read(), "short")}
    for run in found:
        assert {path.name for path in run.folder.iterdir()} == {Path(name).name for name in stage.COLLECTED}


def test_results_of_photographs(workplace: Path) -> None:
    eqsim, noreg = (read_json(stage.finished(name) / "result.json") for name in (EQSIM, NOREG))
    for found in (eqsim, noreg):
        assert list(found["epochs"]) == ["1", "2"]
        assert found["epochs"]["2"] == found["last"]["pooled"]["psnr"]
        assert len(found["last"]["cases"]) == len(found["best"]["cases"]) == 6
        assert found["budget"]["steps"] == 4
        assert found["seconds"] > 0
        # the same pixels but for rounding and clipping to 8 bits
        best = str(found["best"]["epoch"])
        assert found["best"]["pooled"]["psnr"] == pytest.approx(found["epochs"][best], abs=0.05)
    assert noreg["registration"] is None
    assert set(eqsim["registration"]) == {
        "distance", "distance_cross", "distance_unregistered", "largest", "folded",
    }  # fmt: skip
    assert eqsim["budget"]["parameters"] == noreg["budget"]["parameters"]


def test_history_holds_the_equivariance_error(workplace: Path) -> None:
    for name in (EQSIM, NOREG, BRAIN):
        history = read_json(stage.finished(name) / "history.json")
        assert [record["epoch"] for record in history] == [1, 2]
        assert all(record["validation/equivariance"] > 0 for record in history), name


def test_runs_are_in_mlflow_with_curves_and_measures(workplace: Path) -> None:
    from equisynth.store import open_store

    client = open_store()
    for name in (EQSIM, BRAIN):
        found = read_json(stage.finished(name) / "result.json")
        run = client.get_run(found["mlflow_run"])
        assert run.info.status == "FINISHED"
        assert run.data.metrics["proof/last/psnr"] == pytest.approx(found["last"]["pooled"]["psnr"])
        assert run.data.metrics["proof/registration/distance"] == pytest.approx(found["registration"]["distance"])
        assert len(client.get_metric_history(found["mlflow_run"], "validation/equivariance")) == 2
        assert run.data.params["seed"] == "0"


def test_finished_runs_are_not_repeated(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in (workplace / training.WORK).rglob("result.json")}

    def refused(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "_train", refused)
    stage.train("short", jobs=1)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_setting_trains_anew_and_leaves_nothing_of_the_old(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = training.train(NOREG, tmp_path)
    monkeypatch.setattr(training, "code_version", lambda: "changed")
    new = training.train(NOREG, tmp_path)
    assert old != new
    assert [path for path in (tmp_path / NOREG).iterdir() if path.is_dir()] == [new]


@pytest.mark.parametrize("step", [2, 9, 16])
def test_a_killed_run_continues_to_the_same_result(step: int, workplace: Path, tmp_path: Path) -> None:
    assert kill_in_child(lambda: training.train(EQSIM, tmp_path), step)
    assert not list(tmp_path.glob("*/*/result.json"))
    again = training.train(EQSIM, tmp_path)
    undisturbed = stage.finished(EQSIM)
    for file in ("model/model.safetensors",):
        assert (again / file).read_bytes() == (undisturbed / file).read_bytes()
    first, second = (read_json(folder / "result.json") for folder in (undisturbed, again))
    for key in ("last", "best", "epochs", "registration"):
        assert first[key] == second[key], key


def test_a_failed_run_stops_the_stage_and_a_repeat_continues(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def fails_once(name: str, device: str) -> str | None:
        asked.append(name)
        return "the disk is full" if len(asked) == 2 else None

    monkeypatch.setattr(stage, "_train_apart", fails_once)
    names = [run.name for run in protocol.runs(protocol.read(), "short")]
    with pytest.raises(UserError, match=f"{names[1]}: the disk is full; run the same command again"):
        stage.train("short", jobs=1)
    assert asked == names[:2]
    stage.train("short", jobs=1)
    assert asked[2:] == names
    assert "dB after the last epoch" in capsys.readouterr().out


def test_wrong_device_and_missing_runs_end_in_one_line(workplace: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--device: found 'tpu'"):
        stage.train("short", device="tpu")
    with pytest.raises(UserError, match="found 0 finished runs, expected one; run: make proof"):
        stage.finished("proof-nothing", tmp_path)


def test_kept_samples_are_the_pairs(workplace: Path) -> None:
    with np.load(stage.finished(EQSIM) / "samples.npz", allow_pickle=False) as stored:
        kept = dict(stored)
    assert {name.partition("-")[0] for name in kept} == {
        "input", "truth", "label", "prediction", "field", "predicted_field",
    }  # fmt: skip
    np.testing.assert_array_equal(kept["truth-0"], np.roll(kept["input-0"], 1, axis=-1))
    assert kept["field-0"].shape == kept["predicted_field-0"].shape == (2, 32, 32)
    with np.load(stage.finished(BRAIN) / "samples.npz", allow_pickle=False) as stored:
        assert stored["prediction-1"].shape == (16, 16)


# --- the page


def test_page_and_readme_are_made_from_the_runs(workplace: Path) -> None:
    (workplace / "README.md").write_text("before\n<!-- proof:begin (x) -->\nold\n<!-- proof:end -->\nafter\n")
    page.write("short")
    text = (workplace / page.PAGE).read_text(encoding="utf-8")
    psnr = read_json(stage.finished(EQSIM) / "result.json")["last"]["pooled"]["psnr"]
    rows = [line for line in text.splitlines() if line.startswith("| EqSim+Com |")]
    assert f"| {psnr:.2f} |" in rows[0]
    noreg = next(line for line in text.splitlines() if line.startswith("| NoReg+Aug | 2 |"))
    assert " ± " in noreg  # two seeds
    assert "short of it" in text  # four steps teach nothing, and the page says so
    assert "FID: not computed (no weights)" in text
    assert f"| large constant | EqSim+Com | 1 | 25.9 / 0.86 / 7.3 | {psnr:.2f} / " in text
    assert "| brain | NoReg on aligned labels − EqSim+Com+EqAdv | 0 |" in text
    assert "5 of 5 runs of `make proof`" in text
    links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert set(links) == {
        "results/photographs-lc.png", "results/deformations-lc.png", "results/curves-lc.png", "results/brain.png",
        "results/curves-brain.png",
    }  # fmt: skip
    for link in links:
        assert (workplace / "docs" / link).read_bytes().startswith(b"\x89PNG")
        assert (workplace / "docs" / link).stat().st_size < 200_000
    readme = (workplace / "README.md").read_text(encoding="utf-8")
    assert readme.startswith("before\n<!-- proof:begin (x) -->\n")
    assert readme.endswith("<!-- proof:end -->\nafter\n")
    assert f"| EqSim+Com | {psnr:.1f} |" in readme
    assert "old" not in readme
    assert "(docs/results/photographs-lc.png)" in readme


def test_an_unfinished_part_has_a_page_of_what_is_done(workplace: Path, tmp_path: Path) -> None:
    runs = protocol.runs(protocol.read(), "short")
    done = stage.gathered("short", runs[:2], out=tmp_path)
    assert [folder.parent.name for folder in done] == [run.name for run in runs[:2]]
    text = page.to_markdown(results.load(done), protocol.read(), "short", {})
    assert "2 of 5 runs of `make proof`" in text
    assert "Brain" not in text


def test_the_same_runs_make_the_same_page(workplace: Path) -> None:
    found = results.load(everything())
    shown = results.variants(found, "photographs", "lc")
    first, second = (pictures.to_png(pictures.draw_deformations(shown)) for _ in range(2))
    assert first == second
    texts = [page.to_markdown(runs, protocol.read(), "short", {}) for runs in (found, list(reversed(found)))]
    assert texts[0] == texts[1]


def test_reasons_are_put_in_as_they_are(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "NOTES", workplace / "notes.md")
    (workplace / "notes.md").write_text("DefSim drifts.\n")
    text = page.to_markdown(results.load(everything()), protocol.read(), "short", {})
    assert text.endswith("## Where it fell short, and why\n\nDefSim drifts.\n")
