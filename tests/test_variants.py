"""Other epochs, other splits and PNG files: names, messages, and that nothing of the pipeline is touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from equisynth import cli
from equisynth.config import Settings
from equisynth.cuts import Cuts, save
from equisynth.datasets.prepared import DatasetInfo, PreparedDataset, write_case, write_info
from equisynth.description import FORMAT, Description, read_description, write_description
from equisynth.errors import UserError
from equisynth.evaluation import fid
from equisynth.evaluation.fid import Unavailable
from equisynth.methods.base import build_method
from equisynth.model import WEIGHTS, network_states, save_weights
from equisynth.params import read, resolve
from equisynth.predictions import new_prediction, read_prediction
from equisynth.variants import chosen, epoch_model
from registered_cases import true_stain, write_sections

PARAMS = Path(__file__).parents[1] / "params.yaml"
NAME = "ixi-noreg"
MODEL = Path("models") / NAME
SPLITS = {"train": ("t1",), "validate": ("v1",), "test": ("e1", "e2")}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: Any) -> Path:
    """An experiment with three kept epochs; the second is the best one."""
    monkeypatch.chdir(tmp_path)

    def unavailable(*_: Any) -> Path:
        raise Unavailable("none here")

    monkeypatch.setattr(fid, "find_weights", unavailable)
    tree = read(PARAMS)
    tree["pipeline"] = {NAME: {"dataset": "ixi", "method": "noreg", "code": "supervised", "overrides": {}}}
    Path("params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    base = resolve(tree, NAME, "demo").model_dump()
    settings = Settings.model_validate({**base, "patch_size": (16,) * 3, "inference_stride": (16,) * 3,
                                        "normalization_groups": 2, "features": {"i2i": (4, 4)}})  # fmt: skip
    for epoch in (3, 4, 5):
        states = network_states(build_method(settings.model_copy(update={"seed": epoch})).networks)
        save_weights(MODEL / "epochs" / f"epoch_{epoch:04d}.safetensors", states)
        if epoch == 4:
            save_weights(MODEL / WEIGHTS, states)
    write_description(MODEL, Description(format=FORMAT, settings=settings, preparation={}, best_epoch=4, selection=0.5))
    state = np.random.RandomState(0)
    for case in sum(SPLITS.values(), ()):
        image = state.uniform(0, 3, (18, 17, 16)).astype(np.float32)
        write_case(Path("data/prepared/ixi"), case, {"input": image, "label": image, "label_aligned": image}, np.eye(4))
    info = settings.data.model_dump() | {"name": "ixi", "splits": SPLITS}
    write_info("data/prepared/ixi", DatasetInfo.model_validate(info))
    return tmp_path


def command(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(arguments))
    assert not stopped.value.code


def files(*folders: str) -> dict[str, bytes]:
    paths = (path for folder in folders for path in sorted(Path(folder).rglob("*")) if path.is_file())
    return {str(path): path.read_bytes() for path in paths}


def test_the_pipelines_stage_is_the_experiment_itself(workplace: Path) -> None:
    variant = chosen(NAME)
    assert (variant.name, variant.suffixes, variant.splits) == (NAME, (), ("validate", "test"))
    assert variant.models / variant.model == MODEL
    assert variant.predictions() == Path("predictions") / NAME


def test_an_epoch_is_a_model_like_any(workplace: Path) -> None:
    variant = chosen(NAME, "train", "5")
    assert (variant.name, variant.splits) == (f"{NAME}.epoch5.train", ("train",))
    folder = variant.models / variant.model
    assert (folder / WEIGHTS).read_bytes() == (MODEL / "epochs/epoch_0005.safetensors").read_bytes()
    assert read_description(folder).best_epoch == 5
    assert read_description(MODEL).best_epoch == 4
    assert variant.named({"seed": 3, "threads": None, "radius_mm": 80.0}) == f"{NAME}.epoch5.train.seed3.radius_mm80"


@pytest.mark.parametrize("epoch", ["2", "6", "-1", "last", "0x5"])
def test_wrong_epochs_are_told_which_there_are(workplace: Path, epoch: str) -> None:
    with pytest.raises(UserError, match=f"--epoch {epoch}: .*no weights of it; kept are 3, 4, 5; or take best"):
        epoch_model(MODEL, epoch)
    with pytest.raises(UserError, match="none are kept"):
        epoch_model(Path("models/absent"), epoch)


def test_wrong_splits_are_named(workplace: Path) -> None:
    with pytest.raises(UserError, match="--split tset: expected one of train, validate, test"):
        chosen(NAME, "tset")


def test_variants_are_predicted_and_evaluated_beside_the_pipelines_outputs(workplace: Path) -> None:
    command("predict", "--experiment", NAME, "--device", "cpu")
    command("evaluate", NAME)
    before = files("models", "predictions", "reports")
    with pytest.raises(UserError, match=f"equisynth predict --experiment {NAME} --epoch 5 --split train"):
        chosen(NAME, "train", "5").predictions()
    command("predict", "--experiment", NAME, "--split", "train", "--epoch", "5", "--device", "cpu")
    command("evaluate", NAME, "--split", "train", "--epoch", "5")
    command("evaluate", NAME, "--split", "test")  # of what the pipeline has predicted
    after = files("models", "predictions", "reports")
    assert {path: after[path] for path in before} == before
    assert sorted(set(after) - set(before)) == [
        f"predictions/{NAME}.epoch5.train/train/t1.nii",
        *sorted(f"reports/{kind}/{NAME}.{variant}.json" for kind in ("evaluation", "metrics")
                for variant in ("epoch5.train", "test")),
    ]  # fmt: skip
    whole, test, train = (
        json.loads(Path(f"reports/metrics/{name}.json").read_text())
        for name in (NAME, f"{NAME}.test", f"{NAME}.epoch5.train")
    )
    assert test["test"] == whole["test"]
    assert "validate" not in test
    assert list(train)[0] == "train"
    assert train["train"]["mae"] != whole["test"]["mae"]


def test_options_of_variants_go_with_an_experiment(workplace: Path, capsys: Any) -> None:
    for options in (["--split", "test"], ["--epoch", "5"], ["--save-slices-over-dims", "0"], ["--save-labels"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["predict", "image.nii", *options])
        assert stopped.value.code == 2
        assert "go with --experiment" in capsys.readouterr().err


# --- cuts


def test_slices_are_what_the_fid_sees(workplace: Path) -> None:
    command("predict", "--experiment", NAME, "--device", "cpu")
    before = files("predictions")
    command("predict", "--experiment", NAME, "--save-slices-over-dims", "2,0", "--save-labels")
    assert files("predictions") == before
    folder, dataset = Path("reports/slices") / NAME / "test", PreparedDataset.open("data/prepared/ixi")
    assert sorted(path.name for path in folder.iterdir()) == ["label", "prediction"]
    assert sorted(path.name for path in (folder / "prediction").iterdir()) == ["axis0", "axis2"]
    names = [path.name for path in sorted((folder / "label/axis2").iterdir())]
    assert names == [f"{case}_{index:04d}.png" for case in ("e1", "e2") for index in range(16)]
    volumes = {
        "prediction": read_prediction(dataset, Path("predictions") / NAME, "test", "e1"),
        "label": dataset.image("e1", "label_aligned"),
    }
    for side, volume in volumes.items():
        found = np.asarray(Image.open(folder / side / "axis2" / "e1_0007.png"))
        assert np.array_equal(found, np.clip(np.rint(volume[:, :, 7] * np.float32(255 / 6.5)), 0, 255))
    assert len(list((Path("reports/slices") / NAME / "validate/prediction/axis0").iterdir())) == 18


def test_full_valid_tiles(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    tiles = {"tile": 96, "stride": 48, "registration": {"iterations": [20, 10, 10, 5], "sampling": 0.5}}
    Path("params.yaml").write_text(yaml.safe_dump(read(PARAMS) | {"evaluation": {"full_valid": tiles}}))
    dataset = write_sections(Path("prepared"))
    for case in dataset.cases("test"):
        with new_prediction(Path("predictions/test") / f"{case}.nii", dataset, case) as out:
            out[...] = true_stain(dataset, case)
    save(Cuts(tiles=True, labels=True), dataset, Path("predictions"), "some", ("test",))
    assert "10 full-valid tiles of predictions in reports/tiles/some/test" in capsys.readouterr().out
    places = ["0_0", "0_48", "0_96", "48_0", "48_48"]
    for side in ("prediction", "label", "registered"):
        found = sorted(path.name for path in Path("reports/tiles/some/test", side).iterdir())
        assert found == [f"{case}_{place}.png" for case in "cd" for place in places]
    tile = (slice(48, 144), slice(0, 96))
    for side, picture in (("prediction", true_stain(dataset, "c")), ("label", dataset.image("c", "label"))):
        found = np.asarray(Image.open(Path("reports/tiles/some/test", side, "c_48_0.png")))
        assert np.array_equal(found, picture[tile])
    with pytest.raises(UserError, match="pictures, not volumes"):
        save(Cuts(axes=(0,)), dataset, Path("predictions"), "some", ("test",))


def test_what_cannot_be_cut_is_named(workplace: Path) -> None:
    assert Cuts.chosen(None, False, False) is None
    assert Cuts.chosen("2, 0", True, False) == Cuts((0, 2), tiles=True)
    for axes in ("3", "", "a", "0;1", "0,"):
        with pytest.raises(UserError, match="expected axes of 0, 1 and 2"):
            Cuts.chosen(axes, False, False)
    with pytest.raises(UserError, match="--save-labels: goes with"):
        Cuts.chosen(None, False, True)
    with pytest.raises(UserError, match="e1 is no colour picture"):
        save(Cuts(tiles=True), PreparedDataset.open("data/prepared/ixi"), Path("predictions"), NAME, ("test",))
