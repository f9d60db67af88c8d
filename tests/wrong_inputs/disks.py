"""Folders that cannot be written to, and full disks."""

from __future__ import annotations

from pathlib import Path

from wrong_inputs.data import PREPARE, RAW, TRAIN, archives, located
from wrong_inputs.entry import Wrong, together
from wrong_inputs.images import predict
from wrong_inputs.workplace import EXPERIMENT, MODEL, PREPARED, remove, text


def _folder(folder: Path) -> None:
    (folder / "results").mkdir()


def _two_predictions(folder: Path) -> None:
    """What an earlier prediction left."""
    for split, case in (("validate", "c"), ("test", "d")):
        path = folder / f"predictions/{EXPERIMENT}/{split}/{case}.nii"
        path.parent.mkdir(parents=True)
        path.write_bytes((folder / PREPARED / "cases" / case / "label.nii").read_bytes())


ENTRIES = (
    Wrong(
        "output read-only",
        "`predict` into a folder that is read-only",
        predict(output="results/PD.nii"),
        ("results/PD.nii", "cannot be written", "Permission denied", "choose a folder"),
        _folder,
        read_only=("results",),
    ),
    Wrong(
        "output below file",
        "`predict` into a folder that is a file",
        predict(output="params.yaml/PD.nii"),
        ("params.yaml/PD.nii", "cannot be written", "choose a folder"),
    ),
    Wrong(
        "output link",
        "`predict` into a folder that is a link to nowhere",
        predict(output="results/PD.nii"),
        ("results/PD.nii", "cannot be written"),
        lambda folder: (folder / "results").symlink_to("nowhere/at/all"),
    ),
    Wrong(
        "output name long",
        "an output with too long a name",
        predict(output="P" * 300 + ".nii"),
        ("PPP.nii", "too long"),
    ),
    Wrong(
        "stage read-only",
        "a stage whose output folder is read-only",
        f"predict --experiment {EXPERIMENT}",
        (f"predictions/{EXPERIMENT}", "cannot be written"),
        read_only=("predictions",),
    ),
    Wrong(
        "stage file in the way",
        "a file where a stage makes a folder",
        f"predict --experiment {EXPERIMENT}",
        (f"predictions/{EXPERIMENT}", "cannot be written"),
        together(remove("predictions"), text("predictions", "")),
    ),
    Wrong(
        "disk full predict",
        "`predict` onto a full disk",
        predict(output="results/PD.nii"),
        ("results/PD", "No space left", "make room"),
        small_disk="results",
    ),
    Wrong(
        "disk full predict gzip",
        "`predict` of a .nii.gz onto a full disk",
        predict(output="results/PD.nii.gz"),
        ("results/PD", "No space left", "make room"),
        small_disk="results",
    ),
    Wrong(
        "disk full stage",
        "predictions of all cases onto a full disk",
        f"predict --experiment {EXPERIMENT}",
        (f"predictions/{EXPERIMENT}", "No space left", "make room"),
        small_disk="predictions",
        disk_kib=12,
    ),
    Wrong(
        "disk full raw",
        "`raw` onto a full disk",
        RAW,
        ("data/raw/ixi", "No space left", "make room"),
        archives(),
        small_disk="data/raw",
        disk_kib=0,
    ),
    Wrong(
        "disk full prepare",
        "`prepare` onto a full disk",
        PREPARE,
        (".equisynth/prepare/ixi/lock", "No space left", "make room"),
        together(archives(), located),
        small_disk=".equisynth/prepare",
        disk_kib=0,
    ),
    Wrong(
        "disk full checkpoint",
        "`train` whose checkpoints fill the disk",
        TRAIN,
        ("epoch_0001.safetensors", "No space left", "make room"),
        database=True,
        small_disk=".equisynth/checkpoints",
        records=("mlflow.db",),
    ),
    Wrong(
        "disk full checkpoint state",
        "`train` whose optimiser's state fills the disk",
        TRAIN,
        ("state.pt", "No space left", "make room"),
        database=True,
        small_disk=".equisynth/checkpoints",
        disk_kib=64,
        records=("mlflow.db",),
    ),
    Wrong(
        "disk full model",
        "`train` whose model fills the disk",
        TRAIN,
        (MODEL, "No space left", "make room"),
        database=True,
        small_disk="models",
        records=("mlflow.db",),
        progress=1,
    ),
    Wrong(
        "disk full evaluation",
        "`evaluate` onto a full disk",
        f"evaluate {EXPERIMENT}",
        (f"reports/evaluation/{EXPERIMENT}.json", "No space left", "make room"),
        _two_predictions,
        small_disk="reports/evaluation",
        disk_kib=0,
    ),
)
