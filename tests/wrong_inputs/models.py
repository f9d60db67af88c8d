"""Model folders, the registry, the search."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from wrong_inputs.entry import Wrong, together
from wrong_inputs.images import predict
from wrong_inputs.workplace import EXPERIMENT, MODEL, REMOVED, change, change_json, remove, text, truncate

WEIGHTS, DESCRIPTION = f"{MODEL}/model.safetensors", f"{MODEL}/model.json"
SEARCH, TRAIN = f"search {EXPERIMENT} --trials 1", f"train {EXPERIMENT}"


def _other_network(folder: Path) -> None:
    """Weights of wider layers."""
    states = load_file(folder / WEIGHTS)
    save_file({key: torch.cat([value, value]) for key, value in states.items()}, folder / WEIGHTS)


def _pickle(folder: Path) -> None:
    torch.save({"i2i.weight": torch.ones(2)}, folder / WEIGHTS)


def _damaged_checkpoint(folder: Path) -> None:
    """What an interrupted training left, its state damaged."""
    from equisynth import params
    from equisynth.dataset_versions import dataset_version
    from equisynth.files import hash_json

    here = Path.cwd()
    os.chdir(folder)
    try:
        settings = params.resolve(params.read(), EXPERIMENT)
        configuration = hash_json([settings.model_dump(mode="json"), dataset_version("data/prepared/ixi"), "no"])
    finally:
        os.chdir(here)
    text(f".equisynth/checkpoints/{EXPERIMENT}-{configuration}/state.pt")(folder)


def _registered(folder: Path) -> None:
    """One version of a model 'ixi' with the alias 'champion'; straight into the database, which takes no time."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection, connection:
        workspace = [row[1] for row in connection.execute("PRAGMA table_info(registered_models)")]
        extra = ", workspace" if "workspace" in workspace else ""
        value = ", 'default'" if extra else ""
        connection.execute(f"INSERT INTO registered_models (name{extra}) VALUES ('ixi'{value})")
        connection.execute(
            f"INSERT INTO model_versions (name, version, current_stage, source, status, storage_location{extra}) "
            f"VALUES ('ixi', 1, 'None', 'mlruns/lost', 'READY', 'mlruns/lost'{value})"
        )
        connection.execute(
            f"INSERT INTO registered_model_aliases (name, alias, version{extra}) VALUES ('ixi', 'champion', 1{value})"
        )


def _corrupt_database(folder: Path) -> None:
    """Overwrites pages in the middle."""
    content = bytearray((folder / "mlflow.db").read_bytes())
    content[4096:-4096] = b"\x55" * (len(content) - 8192)
    (folder / "mlflow.db").write_bytes(content)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


def _no_truth(folder: Path) -> None:
    """Prepared data without the true aligned label."""
    for path in (folder / "data/prepared/ixi").rglob("label_aligned*"):
        path.unlink()


def _search(name: str, what: str, key: str, value: object, *words: str, **more: object) -> Wrong:
    return Wrong(name, what, SEARCH, ("params.yaml", *words), change(f"search/{key}", value), **more)  # type: ignore[arg-type]


ENTRIES = (
    # folders
    Wrong(
        "no model",
        "a model folder that does not exist",
        predict(model="nowhere"),
        ("--model", "'nowhere'", "models:/NAME@ALIAS"),
    ),
    Wrong(
        "folder without model",
        "a folder without a model",
        predict(model="data"),
        ("'data'", "model.json", "models:/NAME@ALIAS"),
    ),
    Wrong("no weights", "a model without weights", predict(), (WEIGHTS, "dvc pull"), remove(WEIGHTS)),
    Wrong("truncated weights", "truncated weights", predict(), (WEIGHTS, "safetensors", "again"), truncate(WEIGHTS)),
    Wrong("empty weights", "an empty file of weights", predict(), (WEIGHTS, "safetensors", "again"), text(WEIGHTS, "")),
    Wrong("pickled weights", "a pickle named model.safetensors", predict(), (WEIGHTS, "safetensors", "again"), _pickle),
    Wrong(
        "other weights", "weights of another network", predict(), (WEIGHTS, "does not fit", DESCRIPTION), _other_network
    ),
    Wrong(
        "no weights of the network",
        "weights of no network that predicts",
        predict(),
        (WEIGHTS, "does not fit", DESCRIPTION),
        lambda folder: save_file({"discriminator.w": torch.ones(2)}, folder / WEIGHTS),
    ),
    Wrong(
        "newer model",
        "a model of a newer format",
        predict(),
        (DESCRIPTION, "format 2", "format 1", "update"),
        change_json(DESCRIPTION, "format", 2),
    ),
    Wrong(
        "changed model",
        "a model.json that was changed",
        predict(),
        (DESCRIPTION, "settings.patch_size", "changed"),
        change_json(DESCRIPTION, "settings/patch_size", "large"),
    ),
    Wrong(
        "model of unknown method",
        "a model of a method that this version lacks",
        predict(),
        (DESCRIPTION, "'cyclegan'", "equivariant"),
        change_json(DESCRIPTION, "settings/method", "cyclegan"),
    ),
    Wrong(
        "truncated description",
        "a truncated model.json",
        predict(),
        (DESCRIPTION, "not valid JSON"),
        truncate(DESCRIPTION),
    ),
    Wrong(
        "stage without model",
        "prediction before training",
        f"predict --experiment {EXPERIMENT}",
        (DESCRIPTION, "not found", "dvc repro"),
        remove("models"),
    ),
    Wrong(
        "stage other data",
        "a model that was trained on other data",
        f"predict --experiment {EXPERIMENT}",
        ("data/prepared/ixi", "clip", "trained on"),
        change_json("data/prepared/ixi/dataset.json", "input/clip", [0, 5]),
    ),
    Wrong(
        "damaged checkpoint",
        "a damaged checkpoint of an interrupted training",
        TRAIN,
        ("state.pt", "delete", "checkpoint"),
        _damaged_checkpoint,
        database=True,
        records=("mlflow.db",),
    ),
    # the registry
    Wrong(
        "no database",
        "a registered model without a database",
        predict(model="models:/ixi@champion"),
        ("mlflow.db", "not found", "MLFLOW_TRACKING_URI"),
    ),
    Wrong(
        "empty database",
        "an empty database",
        predict(model="models:/ixi@champion"),
        ("mlflow.db", "empty", "MLFLOW_TRACKING_URI"),
        text("mlflow.db", ""),
    ),
    Wrong(
        "text database",
        "text named mlflow.db",
        predict(model="models:/ixi@champion"),
        ("mlflow.db", "not a database"),
        text("mlflow.db", "No database. " * 1000),
    ),
    Wrong(
        "corrupt database",
        "a corrupt database",
        predict(model="models:/ixi@champion"),
        ("mlflow.db", "malformed"),
        _corrupt_database,
        database=True,
    ),
    Wrong(
        "truncated database",
        "a truncated database",
        predict(model="models:/ixi@champion"),
        ("mlflow.db",),
        truncate("mlflow.db", 0.1),
        database=True,
    ),
    Wrong(
        "locked database",
        "a database that another process has locked",
        predict(model="models:/ixi@champion"),
        ("mlflow.db", "locked"),
        _registered,
        meanwhile=_locked,
        database=True,
    ),
    Wrong(
        "unknown model",
        "an unknown registered model",
        predict(model="models:/brain@champion"),
        ("models:/brain@champion", "'brain'", "ixi"),
        _registered,
        database=True,
    ),
    Wrong(
        "unknown alias",
        "an unknown alias",
        predict(model="models:/ixi@best"),
        ("models:/ixi@best", "versions 1", "champion"),
        _registered,
        database=True,
    ),
    Wrong(
        "unknown version",
        "an unknown version",
        predict(model="models:/ixi/7"),
        ("models:/ixi/7", "versions 1", "champion"),
        _registered,
        database=True,
    ),
    Wrong(
        "malformed name",
        "a malformed name of a model",
        predict(model="models:/ixi"),
        ("models:/ixi", "models:/NAME@ALIAS", "models:/NAME/VERSION"),
        database=True,
    ),
    Wrong(
        "lost model",
        "a registered model whose files are gone",
        predict(model="models:/ixi@champion"),
        ("models:/ixi@champion", "mlruns/lost", "not found", "dvc pull"),
        _registered,
        database=True,
    ),
    Wrong(
        "registry key",
        "an unknown key of the registry",
        f"register {EXPERIMENT}",
        ("params.yaml", "registry.aliass", "alias"),
        change("registry/aliass", "best"),
        database=True,
        records=("mlflow.db",),
    ),
    # the search
    _search("search space empty", "an empty search space", "space", {}, "search.space", "{}", "at least one key"),
    _search(
        "search key",
        "a searched key that does not exist",
        "space",
        {"loss.comutation": [0.1, 1]},
        "loss.comutation",
        "no such key",
        "commutation",
    ),
    _search(
        "search reversed",
        "a searched range whose ends are exchanged",
        "space/loss.commutation",
        [10, 0.1],
        "search.space.loss.commutation",
        "low < high",
    ),
    _search(
        "search log",
        "zero on a log scale",
        "space/loss.commutation",
        [0, 1],
        "search.space.loss.commutation",
        "above 0",
        "log: false",
    ),
    _search(
        "search value",
        "a searched range that the setting does not allow",
        "space",
        {"loss.commutation": {"low": -1, "high": 1, "log": False}},
        "loss.commutation",
        "-1",
        "greater than or equal to 0",
    ),
    _search(
        "search without effect",
        "a search of weights that the method lacks",
        "space",
        {"loss.similarity_weight": [0.1, 1]},
        "search.space",
        "no key has an effect",
    ),
    _search(
        "search objective", "an unknown objective", "objective", "fid", "search.objective", "'fid'", "'aligned_mae'"
    ),
    _search("search no trials", "no trials", "trials", 0, "search.trials", "0", "1"),
    _search(
        "search storage",
        "a search's storage that is no database",
        "storage",
        "somewhere",
        "search.storage",
        "'somewhere'",
        database=True,
    ),
    _search(
        "search storage kind",
        "a search's storage of an unknown kind",
        "storage",
        "magic://host/db",
        "search.storage",
        "magic",
        database=True,
    ),
    Wrong(
        "search unknown",
        "a search for an unknown experiment",
        "search ixi-magic",
        ("params.yaml", "'ixi-magic'", EXPERIMENT),
    ),
    Wrong("search trials option", "fewer than one trial", f"search {EXPERIMENT} --trials 0", ("--trials", "1")),
    Wrong(
        "search missing",
        "a search without a space",
        SEARCH,
        ("params.yaml", "search.space", "missing"),
        change("search/space", REMOVED),
    ),
    _search("search sampler", "an unknown sampler", "sampler", "cmaes", "search.sampler", "'cmaes'", "'tpe'"),
    _search("search pruner", "an unknown pruner", "pruner", True, "search.pruner", "True", "'median'"),
    _search("search misspelt", "an unknown key of the search", "sampelr", "tpe", "search.sampelr", "no such key"),
    _search("search folding", "a share of folded voxels above 1", "max_folded_share", 2, "max_folded_share", "2"),
    _search("search seeds", "no fresh seeds to confirm with", "confirm_seeds", 0, "search.confirm_seeds", "0", "1"),
    _search("search seed", "a negative seed of the search", "seed", -1, "search.seed", "-1"),
    _search(
        "search no choices",
        "an empty list of choices",
        "space",
        {"batch_size": {"choices": []}},
        "batch_size",
        "at least one choice",
    ),
    _search(
        "search of seeds",
        "a search of seeds",
        "space",
        {"loss.commutation": [0.1, 1], "seed": {"choices": [1, 2]}},
        "search.space",
        "'seed'",
        "--confirm",
    ),
    _search(
        "search of epochs",
        "a search of epochs, which the search sets itself",
        "space",
        {"epochs": {"choices": [1, 2]}},
        "search.space",
        "'epochs'",
        "search.epochs",
    ),
    _search(
        "search driver",
        "a search's storage whose driver is not installed",
        "storage",
        "mysql+pymysql://someone@host/studies",
        "search.storage",
        "pymysql",
        "pip install",
    ),
    _search(
        "search server",
        "a search's database server that does not answer",
        "storage",
        "postgresql+psycopg://someone:secret@127.0.0.1:1/studies",
        "search.storage",
        "someone:***@127.0.0.1:1",
        "cannot be opened",
    ),
    Wrong(
        "search journal",
        "a search's journal that is none",
        SEARCH,
        (f".equisynth/search/{EXPERIMENT}.journal", "no journal", "move it away"),
        text(f".equisynth/search/{EXPERIMENT}.journal", "studies\n"),
    ),
    Wrong(
        "search without truth",
        "an objective that needs an aligned label which the data lack",
        SEARCH,
        ("params.yaml", "search.objective", "aligned label", "'registered'"),
        together(change("search/objective", "aligned_mae"), _no_truth),
    ),
    Wrong(
        "search unprepared",
        "a search on a dataset that is not prepared",
        SEARCH,
        ("dataset.json", "not found"),
        remove("data/prepared/ixi"),
    ),
    Wrong("search jobs", "no process to search with", f"search {EXPERIMENT} --jobs 0", ("--jobs", "1")),
    Wrong("search confirm", "a negative number of confirmations", f"search {EXPERIMENT} --confirm -1", ("--confirm",)),
)
