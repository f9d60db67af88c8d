"""Each of the 68 published experiments trains, is interrupted, continues, predicts and is evaluated, made small."""

from __future__ import annotations

import math
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from equisynth import params
from equisynth.config import Settings
from equisynth.datasets.opened import open_dataset
from equisynth.errors import UserError
from equisynth.evaluation.names import PREFIXES
from equisynth.files import read_json
from equisynth.methods.base import SELECTION, build_method, method_class
from equisynth.model import load_model, read_weights
from equisynth.predictions import read_prediction
from equisynth.stages import evaluate, predict, train
from equisynth.store import flatten, open_store
from equisynth.tracking import log_evaluation, run_of
from small_experiments import CASES, PUBLISHED, REDUCED, TREE, changed, parameters, write_dataset

pytest_plugins = ["mlflow_repository"]

# One of each method, dimension and switch that changes what is computed.
REPRESENTATIVE = [
    "cermep-eqsim_com_eqadv",                         # equivariant, volumes, conditional discriminator
    "coco-lr_eqsim_com",                              # pictures, labels deformed while training, no discriminator
    "coco-sc_defsim_aug",                             # no commutation, augmented
    "staining-defsim_com_eqadv",                      # colours
    "staining-defsim_defuncondadv_aug",               # unconditional discriminator
    "ixi-noreg_defcondadv_aug_on_re_registered",      # supervised, volumes
    "staining-noreg_defcondadv_aug_on_unregistered",  # supervised, pictures, a discriminator of seven levels
    "ixi-pix2pix",                                    # slices, unet_256
    "staining-cycle_gan",                             # unpaired, two transformations, image pool, masks
    "cermep-nemar_unmodified",                        # transformer B, slices
    "cermep-reg_gan",                                 # registration B, one image per step
    "ixi-nemar_with_our_components",
]  # fmt: skip
MEASURES = ["mae", "mse", "nmi", "psnr", "ssim"]
PREFIX = {"ixi": "", "coco": "", "cermep": "registered_", "staining": "registered_"}
"""Labels that were registered are not known to be aligned: their measures say so."""

FURTHER = tuple(PREFIXES.values())
"""Measures that only some have: by the dataset, or by networks that register."""

Prepared = Callable[[Settings], Path]


class Interrupted(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Settings -> the folder of a dataset that fits their patches; experiments with the same patches share it."""
    top = tmp_path_factory.mktemp("prepared")

    def find(settings: Settings) -> Path:
        folder = top / "-".join(map(str, [settings.dataset, *settings.patch_size]))
        if not folder.exists():
            write_dataset(folder, settings)
        return folder

    return find


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, without FID's weights and without a network to download them from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return tmp_path


def made_small(name: str) -> Settings:
    """The settings of an experiment as the working directory's ``params.yaml`` says, which is written here."""
    Path("params.yaml").write_text(yaml.safe_dump(parameters(name), sort_keys=False))
    return params.resolve(params.read(), name, options=lambda method: method_class(method).Options)


def run_through(name: str, prepared: Prepared) -> list[dict[str, float]]:
    """Trains with an interruption after the first epoch, predicts, evaluates and checks what came of it.

    Returns:
        The training's history.
    """
    settings = made_small(name)
    folder, data = Path("models") / name, prepared(settings)
    dataset = open_dataset(data, settings)
    finished: list[int] = []

    def stop(epoch: int, values: dict[str, float]) -> None:
        finished.append(epoch)
        raise Interrupted

    with pytest.raises(Interrupted):
        train.train_once(settings, dataset, folder, stop)
    assert not folder.exists()
    history = train.train_once(settings, dataset, folder, lambda epoch, _: finished.append(epoch))
    assert finished == [1, 2]
    assert all(math.isfinite(value) for record in history for value in record.values())
    check_learning(settings, folder, history)

    predictions = Path("predictions") / name
    predict.run(folder, data, predictions, device="cpu")
    for split in predict.SPLITS:
        for case in CASES[split]:
            found = read_prediction(dataset, predictions, split, case)
            assert found.shape == dataset.image(case, "input").shape
            assert np.isfinite(found).all()
            assert found.std() > 0

    evaluate.run(name, data, predictions)
    metrics = read_json(Path("reports/metrics") / f"{name}.json")
    expected = [f"{PREFIX[settings.dataset]}{measure}" for measure in MEASURES]
    for split in predict.SPLITS:  # of all methods alike
        assert sorted(key for key in metrics[split] if not key.startswith(FURTHER)) == expected
    numbers = [value for value in flatten(metrics, "/").values() if isinstance(value, float)]
    assert all(math.isfinite(value) for value in numbers)
    return history


def check_learning(settings: Settings, folder: Path, history: list[dict[str, float]]) -> None:
    """Every network moved in the second epoch, and the model that is loaded is the better epoch's."""
    first, second = (read_weights(folder / f"epochs/epoch_{epoch:04d}.safetensors") for epoch in (1, 2))
    networks = build_method(settings).networks
    for name, network in networks.items():  # parameters: vectors of spectral norms move without an optimiser
        keys = [f"{name}.{key}" for key, _ in network.named_parameters()]
        assert any(not torch.equal(first[key], second[key]) for key in keys), name
    model = load_model(folder, "cpu")
    best = min(history, key=lambda record: record[f"validation/{SELECTION}"])["epoch"]
    weights: dict[str, Tensor] = (first, second)[int(best) - 1]
    for key, value in model.network.state_dict().items():
        assert torch.equal(value, weights[f"i2i.{key}"])


@pytest.mark.parametrize("name", PUBLISHED)
def test_only_sizes_widths_and_steps_are_made_smaller(name: str) -> None:
    full = params.resolve(TREE, name, "paper")
    small = params.resolve(parameters(name), name)
    assert changed(full, small) <= REDUCED
    assert small.epochs * (small.epoch_steps or 0) == 2
    for key, levels in full.features:
        assert len(levels or ()) == len(getattr(small.features, key) or ())


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_smaller_patches_fit_the_published_networks(name: str) -> None:
    small = params.resolve(parameters(name), name)
    first, second, *further = small.patch_size
    less = [side // 2 for side in small.patch_size] if small.features.i2i else [first, second - 4, *further]
    with pytest.raises((UserError, ValidationError), match="patch_size"):
        smaller = Settings.model_validate(small.model_dump() | {"patch_size": less, "inference_stride": None})
        method_class(smaller.method).options(smaller)


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_representative_experiments_run_and_resume_bit_for_bit(name: str, prepared: Prepared, place: Path) -> None:
    history = run_through(name, prepared)
    settings, undisturbed = made_small(name), Path("undisturbed")
    dataset = open_dataset(prepared(settings), settings)
    assert train.train_once(settings, dataset, undisturbed, lambda *_: None) == history
    for path in sorted(undisturbed.rglob("*.safetensors")):
        assert path.read_bytes() == (Path("models") / name / path.relative_to(undisturbed)).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PUBLISHED if name not in REPRESENTATIVE])
def test_published_experiments_run(name: str, prepared: Prepared, place: Path) -> None:
    run_through(name, prepared)


def test_runs_of_different_methods_stand_side_by_side(prepared: Prepared, repository: Path, place: Path) -> None:
    """In MLflow they have the same measures, and losses that mean the same under one name."""
    names = ["staining-defsim_com_eqadv", "staining-pix2pix"]
    both = [made_small(name) for name in names]
    data, client = Path("data/prepared/staining"), open_store()
    write_dataset(data, *both)
    metrics: dict[str, set[str]] = {}
    for name in names:
        made_small(name)
        train.run(name, data, Path("models") / name)
        predict.run(Path("models") / name, data, Path("predictions") / name, device="cpu")
        evaluate.run(name, data, Path("predictions") / name)
        run_id = run_of(name)
        log_evaluation(run_id, read_json(Path("reports/metrics") / f"{name}.json"))
        metrics[name] = set(client.get_run(run_id).data.metrics)

    ours, pix2pix = metrics.values()
    expected = {f"{split}/registered_{measure}" for split in predict.SPLITS for measure in MEASURES}
    for key in ("test/", "validate/", "validation/", "reference/"):
        found, others = ({name for name in names if name.startswith(key)} for names in (ours, pix2pix))
        assert {name for name in found if "/deformation_" not in name} == others != set()  # pix2pix registers nothing
    assert expected <= ours
    losses = {"loss", "adversarial", "discriminator_real", "discriminator_fake"}
    assert {key.removeprefix("train/") for key in ours & pix2pix if key.startswith("train/")} == losses
    assert not pix2pix - ours - {"train/l1"}  # one term of its own
