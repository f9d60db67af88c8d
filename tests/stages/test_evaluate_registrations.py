"""The stage ``evaluate`` where labels must be registered first: names, caches, parts, kills, what makes it stale."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml

from equisynth.config import Settings
from equisynth.datasets.prepared import PreparedDataset
from equisynth.description import FORMAT, Description, write_description
from equisynth.errors import UserError
from equisynth.evaluation import fid, full_valid, parts, registered
from equisynth.evaluation.affine_registration import AffineRegistration
from equisynth.evaluation.local_registration import LocalRegistration
from equisynth.evaluation.settings import read_settings
from equisynth.methods.base import build_method
from equisynth.model import WEIGHTS, network_states, save_weights
from equisynth.params import read, resolve
from equisynth.predictions import new_prediction
from equisynth.preprocessing import elastix
from equisynth.stages import evaluate
from killing import kill_in_child
from registered_cases import SHAPE, true_ct, true_stain, write_heads, write_sections

PARAMS = Path(__file__).parents[2] / "params.yaml"
STEP = {"iterations": 2, "samples": 200, "step_size_samples": 100}
ELASTIC = {**STEP, "grid_spacing": 30}
SECTION = {
    "split": "test",
    "registered": {
        "locations": 1, "weight_std_mm": 15,
        "registration": {"rigid": STEP, "elastic": ELASTIC, "radius_mm": 30, "label_radius_mm": 36},
    },
    "full_valid": {"tile": 96, "stride": 96, "registration": {"iterations": [40, 30, 20, 10], "sampling": 0.5}},
}  # fmt: skip
SPLITS = ("validate", "test")


def make_model(folder: Path, dataset: PreparedDataset, seed: int = 0) -> None:
    base = resolve(read(PARAMS), "ixi-noreg", "demo").model_dump()
    chosen = Settings.model_validate({
        **base, "dataset": dataset.info.name, "data": dataset.info.data.model_dump(), "normalization_groups": 2,
        "patch_size": (16,) * dataset.info.n_dims, "training_stride": None, "inference_stride": None,
        "random_transformation": {}, "features": {"i2i": (4, 4)}, "seed": seed,
    })  # fmt: skip
    save_weights(folder / WEIGHTS, network_states(build_method(chosen).networks))
    write_description(folder, Description(format=FORMAT, settings=chosen, preparation={}, best_epoch=1, selection=0.5))


def predict(dataset: PreparedDataset, model: str, wrong_by: float) -> None:
    """The truth, but for a constant."""
    for split in SPLITS:
        for case in dataset.cases(split):
            truth = true_ct(dataset, case) if dataset.info.n_dims == 3 else true_stain(dataset, case)
            with new_prediction(Path("predictions") / model / split / f"{case}.nii", dataset, case) as out:
                out[...] = np.asarray(truth, float) - wrong_by


def make_workplace(folder: Path, monkeypatch: Any, write: Callable[[Path], PreparedDataset]) -> PreparedDataset:
    """Two models of a dataset, and the parameters; no FID."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(fid, "find_weights", unavailable)
    Path("params.yaml").write_text(yaml.safe_dump(read(PARAMS) | {"evaluation": SECTION}, sort_keys=False))
    dataset = write(Path("prepared"))
    for seed, name in enumerate(("first", "second")):
        make_model(Path("models") / name, dataset, seed)
        predict(dataset, name, 10.0 * (seed + 1))
    return dataset


def unavailable(*_: Any) -> Path:
    raise fid.Unavailable("none here")


@pytest.fixture
def heads(tmp_path: Path, monkeypatch: Any) -> PreparedDataset:
    return make_workplace(tmp_path, monkeypatch, write_heads)


@pytest.fixture
def sections(tmp_path: Path, monkeypatch: Any) -> PreparedDataset:
    return make_workplace(tmp_path, monkeypatch, write_sections)


def run(model: str = "first", **options: Any) -> None:
    evaluate.run(model, Path("prepared"), Path("predictions") / model, **{"jobs": 1} | options)


def results(model: str = "first") -> tuple[dict[str, Any], dict[str, Any]]:
    """Numbers and details."""
    numbers, details = (
        json.loads(Path("reports", kind, f"{model}.json").read_text()) for kind in ("metrics", "evaluation")
    )
    return numbers, details


class Counter:
    """Counts calls; stops the chosen one as Ctrl-C does."""

    def __init__(self, monkeypatch: Any, place: Any, name: str, stop_at: int = 0) -> None:
        self.calls, self._stop_at, self._function = 0, stop_at, getattr(place, name)
        monkeypatch.setattr(place, name, self)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self._stop_at:
            raise KeyboardInterrupt
        return self._function(*arguments, **options)


def test_heads_have_local_measures_and_error_volumes_and_a_second_model_registers_nothing(
    heads: PreparedDataset, monkeypatch: Any
) -> None:
    counter = Counter(monkeypatch, elastix, "register")
    run("first")
    assert counter.calls == 3  # a location of each case of both splits
    run("second")
    assert counter.calls == 3
    assert len(list(Path(".equisynth/registrations/heads").rglob("*.npz"))) == 3
    numbers, details = results("first")
    others, _ = results("second")
    for split in SPLITS:
        found = details["registered"][split]
        assert set(numbers[split]) == {f"local_{name}" for name in ("mae", "mse", "me", "psnr", "ssim")}
        assert all(numbers[split][f"local_{name}"] == value for name, value in found["pooled"].items())
        assert others[split]["local_me"] == pytest.approx(numbers[split]["local_me"] + 10, abs=0.01)
        assert list(found["cases"]) == sorted(heads.cases(split))
        assert found["locations"] == len(heads.cases(split))
        for kind in ("full_valid", "deformation"):
            assert details[kind][split]["computed"] is False
            assert details[kind][split]["reason"]
        for case in heads.cases(split):
            image = nibabel.load(f"reports/error_volumes/first/{split}/{case}.nii")
            assert image.shape == SHAPE
            assert np.array_equal(image.affine, heads.affine(case))
            assert image.get_fdata().max() > 0


def test_sections_have_measures_of_tiles_and_a_second_model_registers_nothing(
    sections: PreparedDataset, monkeypatch: Any
) -> None:
    counter = Counter(monkeypatch, full_valid, "affine_map")
    run("first")
    assert counter.calls == 6  # two tiles of each case
    run("second")
    assert counter.calls == 6
    numbers, details = results("first")
    for split in SPLITS:
        found = details["full_valid"][split]
        assert found["tiles"] == 2 * len(sections.cases(split))
        assert set(numbers[split]) == {f"full_valid_{name}" for name in ("mae", "mse", "psnr", "ssim", "nmi")}
        assert numbers[split]["full_valid_mae"] == found["pooled"]["mae"]
        assert details["registered"][split]["computed"] is False
    assert list(Path("reports/error_volumes/first").iterdir()) == []  # DVC's output is there all the same


def written() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path("reports").rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("name", "kind", "find", "left"),
    [("heads", registered, (elastix, "register"), 1), ("sections", full_valid, (full_valid, "affine_map"), 2)],
)
def test_interrupted_within_the_second_case_it_continues(
    name: str,
    kind: Any,
    find: tuple[Any, str],
    left: int,
    request: pytest.FixtureRequest,
    monkeypatch: Any,
    capsys: Any,
) -> None:
    """First while it registers, then while it measures; of three cases some are left."""
    request.getfixturevalue(name)
    run()
    expected = written()
    shutil.rmtree("reports")
    shutil.rmtree(".equisynth")
    with monkeypatch.context() as patch:
        Counter(patch, *find, stop_at=2)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert written() == {}
    with monkeypatch.context() as patch:
        Counter(patch, kind, "measure_case", stop_at=2)
        with pytest.raises(KeyboardInterrupt):
            run()
    assert written() == {}
    measured, found = Counter(monkeypatch, kind, "measure_case"), Counter(monkeypatch, *find)
    capsys.readouterr()
    run()
    assert f"continuing, {3 - left} parts are there" in capsys.readouterr().err
    assert (measured.calls, found.calls) == (left, 0)
    assert written() == expected


def test_a_kill_at_any_rename_costs_at_most_a_case(heads: PreparedDataset, monkeypatch: Any) -> None:
    run()
    expected, cache = written(), Path(".equisynth/registrations")
    kills = 0
    for step in range(1, 100, 2):
        shutil.rmtree("reports")
        shutil.rmtree(".equisynth/evaluate")
        if not kill_in_child(run, step):
            break
        shutil.rmtree("reports", ignore_errors=True)  # as DVC deletes outputs
        kept = {path: path.stat().st_mtime_ns for path in Path(".equisynth/evaluate").rglob("[!.]*.npz")}
        run()
        assert written() == expected, step
        assert {path: path.stat().st_mtime_ns for path in kept} == kept, step  # not made again
        kills += 1
    assert kills > 3
    assert len(list(cache.rglob("*.npz"))) == 3


def test_processes_and_caches_make_nothing_stale_and_settings_do(heads: PreparedDataset, monkeypatch: Any) -> None:
    run()
    before = written()
    counter = Counter(monkeypatch, registered, "measure_case")
    run(jobs=1, cache=Path("elsewhere"))
    assert counter.calls == 0
    assert written() == before
    again = Counter(monkeypatch, elastix, "register")
    run(settings=read_settings(read(), {"seed": 5}))
    assert (counter.calls, again.calls) == (3, 3)
    assert written() != before


def test_parts_are_found_apart_and_merge(heads: PreparedDataset, monkeypatch: Any) -> None:
    counter, settings = Counter(monkeypatch, elastix, "register"), read_settings(read())
    said = [
        parts.run("first", Path("prepared"), f"{number}/2", SPLITS, settings, Path(f"machine{number}"), jobs=1)
        for number in (1, 2)
    ]
    assert counter.calls == 3
    assert said[0].startswith("part 1/2: 2 registrations are in machine1, 0 failed\n")
    assert "equisynth evaluate first" in said[0]
    assert not Path("reports").exists()
    for number in (1, 2):
        shutil.copytree(f"machine{number}", "merged", dirs_exist_ok=True)
    run(cache=Path("merged"))
    assert counter.calls == 3


def test_wrong_parts_are_named(heads: PreparedDataset, monkeypatch: Any) -> None:
    settings = read_settings(read())
    for text in ("0/2", "3/2", "2", "a/b"):
        with pytest.raises(UserError, match=f"--part {text}: expected .* such as 2/5"):
            parts.run("first", Path("prepared"), text, SPLITS, settings, Path("cache"))
    none = settings.model_copy(update={"registered": None})
    with pytest.raises(UserError, match=r"without registrations \(registered: left out; full_valid: b is no colour"):
        parts.run("first", Path("prepared"), "1/2", SPLITS, none, Path("cache"))


# --- settings


def test_scales_lay_their_part_over_the_published_values() -> None:
    tree = read(PARAMS)
    paper, demo = (read_settings(tree | {"scale": scale}) for scale in ("paper", "demo"))
    assert paper.registered == registered.RegisteredSettings()
    assert paper.full_valid == full_valid.FullValidSettings()
    assert demo.registered is not None
    assert demo.registered.locations == 2
    assert demo.registered.weight_std_mm == 30
    assert demo.registered.registration.elastic.samples == 1000
    assert demo.registered.registration.elastic.bending_weight == 20
    assert demo.full_valid is not None
    assert (demo.full_valid.tile, demo.full_valid.stride) == (256, 128)


def test_options_stand_for_settings() -> None:
    options = {"seed": 7, "threads": 3, "radius_mm": 80.0, "label_radius_mm": 90.0, "weight_std_mm": 20.0}
    found = read_settings(read(PARAMS) | {"scale": "paper"}, options)
    around, tiles = found.registered, found.full_valid
    assert around is not None
    assert tiles is not None
    assert (around.seed, around.weight_std_mm, around.locations) == (7, 20, 20)
    assert around.registration == LocalRegistration(threads=3, radius_mm=80, label_radius_mm=90)
    assert tiles.registration == AffineRegistration(seed=7, threads=3)
    tree = read(PARAMS)
    left_out = {**tree, "evaluation": {**tree["evaluation"], "scales": {}, "registered": None}}
    assert read_settings(left_out, options).registered is None
    with pytest.raises(UserError, match="option --radius-mm.*found -1"):
        read_settings(tree, {"radius_mm": -1.0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"registered": {"locations": 0}}, "evaluation.registered.locations: found 0"),
        ({"full_valid": {"tiles": 3}}, "evaluation.full_valid.tiles: .*known: .*tile"),
        ({"scales": {"demo": {"registered": {"jobs": 2}}}}, "evaluation.scales.demo.registered.jobs"),
        ({"scales": {"huge": {}}}, "evaluation.scales: found 'huge', expected one of: paper, demo"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, Any], message: str) -> None:
    tree = read(PARAMS)
    with pytest.raises(UserError, match=message):
        read_settings(tree | {"scale": "demo", "evaluation": {"split": "test"} | change})


@pytest.mark.parametrize("scale", ["demo", "paper"])
def test_what_is_left_out_stays_so_at_every_scale(scale: str) -> None:
    tree = read(PARAMS)
    tree |= {"scale": scale, "evaluation": tree["evaluation"] | {"registered": None, "full_valid": None}}
    settings = read_settings(tree)
    assert (settings.registered, settings.full_valid) == (None, None)


def test_left_out_they_are_not_measured(heads: PreparedDataset, monkeypatch: Any) -> None:
    counter = Counter(monkeypatch, elastix, "register")
    Path("params.yaml").write_text(yaml.safe_dump(read(PARAMS) | {"evaluation": {"registered": None}}))
    run()
    assert counter.calls == 0
    assert results()[1]["registered"]["test"] == {"split": "test", "computed": False, "reason": "left out"}
