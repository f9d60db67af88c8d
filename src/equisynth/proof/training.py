"""One run of the proof: train, measure, keep. What is there is not done again, what was killed continues.

``.equisynth/proof/<run>/<key>/`` holds a run's checkpoints while it trains and, when it is done, its `FILES`; the key
names its settings, its data and the code.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from equisynth import params
from equisynth.config import Settings
from equisynth.dataset_versions import dataset_version
from equisynth.datasets.opened import open_dataset
from equisynth.datasets.patches import TrainingPatches, ValidationPatches
from equisynth.datasets.prepared import PreparedDataset
from equisynth.description import FORMAT, Description
from equisynth.evaluation import fid
from equisynth.evaluation.aligned import evaluate_split
from equisynth.files import atomic_path, hash_json, read_json, remove, sha256, write_json
from equisynth.methods.base import Method, build_method, method_class
from equisynth.model import WEIGHTS, Model
from equisynth.proof import measures, protocol
from equisynth.proof.protocol import BRAIN, PHOTOGRAPHS, PREPARED, Run
from equisynth.proof.watched import Watched
from equisynth.stages.predict import translate_case
from equisynth.stages.train import fit, write_model
from equisynth.tracking import TrainingRun, log_evaluation
from equisynth.training import KEPT_EPOCHS, Trainer
from equisynth.work import alone, code_version

WORK = Path(".equisynth/proof")
RESULT, HISTORY, SAMPLES, MODEL = "result.json", "history.json", "samples.npz", "model"
FILES = (RESULT, HISTORY, SAMPLES)
"""What the page is made from; ``result.json`` is written last and says that the run is done."""
SPLIT = "test"
SAMPLED = 3
"""Test cases that a run keeps for pictures: the first of each photograph, one slice of the first brains."""
FID_AXES = (2,)  # axial slices of volumes


def train(name: str, work: Path = WORK, prepared: Mapping[str, Path] = PREPARED) -> Path:
    """Trains and measures the run of this name, or what is left of it.

    Returns:
        The folder that holds its `FILES`.

    Raises:
        UserError: no such run, no data, or the training diverged.
    """
    specified = protocol.read()
    run = protocol.find(specified, name)
    settings = protocol.settings(specified, params.read(), run)
    folder, version = prepared[run.task], dataset_version(prepared[run.task])
    dataset = open_dataset(folder, settings)
    dataset.require(settings.data, f"the proof's settings of '{settings.dataset}' say")
    method_class(settings.method)  # its file is part of the code
    key = hash_json([settings.model_dump(mode="json"), version, code_version()])
    with alone(work / name / "lock", name):
        out = work / name / key
        for other in (work / name).iterdir():  # other settings, data or code
            if other.is_dir() and other != out:
                remove(other)
        if not (out / RESULT).is_file():
            _train(run, settings, dataset, version, key, out)
    return out


def _train(run: Run, settings: Settings, dataset: PreparedDataset, version: str, key: str, out: Path) -> None:
    method = Watched(build_method(settings))
    patches = TrainingPatches(dataset, settings, "train", settings.seed)
    chosen_on = ValidationPatches(dataset, settings, "validate", settings.seed)
    trainer = Trainer(method, settings, patches, chosen_on, out / "checkpoints")
    seconds = _Seconds(out / "seconds.json")
    complete = trainer.state.epoch >= settings.epochs
    with TrainingRun.start(settings, key, version, further={"proof": run.task}, complete=complete) as tracked:

        def on_epoch(epoch: int, values: dict[str, float]) -> None:
            seconds.add(epoch, values["seconds"])
            tracked.log_epoch(epoch, values)

        history = fit(trainer, on_epoch)
        write_model(trainer, dataset, out / MODEL)
        found = measure(trainer, dataset, run)
        tracked.finish(sha256(out / MODEL / WEIGHTS), history)
    log_evaluation(tracked.run_id, {"proof": _for_mlflow(found)})
    samples = sample(trainer, dataset, run)
    write_json(out / HISTORY, history)
    with atomic_path(out / SAMPLES) as temporary:
        np.savez(temporary, **samples)  # type: ignore[arg-type]
    remove(out / "checkpoints")  # the last six epochs' weights are in the model
    found |= {
        "run": {"name": run.name, "task": run.task, "variant": run.variant, "regime": run.regime, "seed": run.seed},
        "budget": {"epochs": settings.epochs, "steps": settings.epochs * (len(patches) // settings.batch_size),
                   "parameters": sum(value.numel() for value in method.networks["i2i"].parameters())},
        "seconds": seconds.total(), "machine": machine(trainer), "mlflow_run": tracked.run_id, "dataset": version,
    }  # fmt: skip
    write_json(out / RESULT, found)


def measure(trainer: Trainer, dataset: PreparedDataset, run: Run) -> dict[str, Any]:
    """Both protocols' measures on the test split, for JSON.

    Returns:
        ``last``: of the last epoch (photographs: no mask, outputs as they are); ``best``: of the best of the last six,
        masked, and its ``epoch``; ``epochs``: PSNR of each of the last six; ``registration``: of the last epoch, None
        without registration networks; ``fid``.
    """
    settings, last = trainer.settings, trainer.state.epoch
    method = trainer.method
    epochs: dict[str, float | None] = {}
    for epoch in range(max(1, last - KEPT_EPOCHS + 1), last + 1):
        _load(trainer, epoch)
        found = _test(trainer, dataset, run)
        epochs[str(epoch)] = found["pooled"]["psnr"]
    result: dict[str, Any] = {"last": found, "epochs": epochs, "registration": None}
    if measures.registers(method):
        result["registration"] = measures.finite(measures.registration(_within(method), dataset, settings, SPLIT))
    result["fid"] = _fid(trainer, dataset, run)
    best = trainer.best_epoch()
    _load(trainer, best)
    result["best"] = {"epoch": best} | _masked(trainer, dataset)
    return result


def sample(trainer: Trainer, dataset: PreparedDataset, run: Run) -> dict[str, np.ndarray]:
    """A few test cases of the last epoch for pictures: ``<image>-<number>``, 8-bit colours or slices (H, W).

    Images are input, truth, label and prediction; photographs' true and predicted deformations (2, *P) beside them.
    """
    _load(trainer, trainer.state.epoch)
    settings, method, result = trainer.settings, _within(trainer.method), {}
    cases = sorted(dataset.cases(SPLIT))[:SAMPLED]
    for number, case in enumerate(cases):
        images = {
            "input": dataset.image(case, "input"),
            "truth": dataset.image(case, "label_aligned"),
            "label": dataset.image(case, settings.label_role),
            "prediction": translate_case(_model(trainer, dataset), dataset, case),
        }
        for role, image in images.items():
            if run.task == BRAIN:
                shown = np.asarray(image[..., image.shape[-1] // 2], np.float32)
            else:
                shown = np.clip(np.rint(np.asarray(image, np.float32)), 0, 255).astype(np.uint8)
            result[f"{role}-{number}"] = shown
        if run.task == PHOTOGRAPHS:
            result[f"field-{number}"] = np.asarray(dataset.deformation(case), np.float32)
            if measures.registers(method):
                batch, _ = measures.registration_pair(method, dataset, settings, case, (0, 0))
                with torch.no_grad():
                    found = measures.predicted_deformations(method, batch)[0]
                result[f"predicted_field-{number}"] = found[0].cpu().numpy()
    return result


def machine(trainer: Trainer) -> dict[str, Any]:
    """What it ran on, for the page."""
    device = trainer.accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": device.type, "name": name, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip


class _Seconds:
    """How long each epoch took, kept over interruptions."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seconds: dict[str, float] = read_json(path) if path.is_file() else {}

    def add(self, epoch: int, seconds: float) -> None:
        self._seconds[str(epoch)] = seconds
        write_json(self._path, self._seconds)

    def total(self) -> float:
        return sum(self._seconds.values())


def _within(method: Method) -> Method:
    return method.within if isinstance(method, Watched) else method


def _load(trainer: Trainer, epoch: int) -> None:
    """Puts the weights of a kept epoch into the networks."""
    weights = trainer.weights_of(epoch)
    for name, network in trainer.method.networks.items():
        prefix = f"{name}."
        network.load_state_dict({k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)})
    trainer.method.train(False)


def _test(trainer: Trainer, dataset: PreparedDataset, run: Run) -> dict[str, Any]:
    if run.task == BRAIN:
        return _masked(trainer, dataset)
    outputs = measures.translate_pictures(_within(trainer.method), dataset, SPLIT, trainer.settings)
    signal_range = trainer.settings.data.label.signal_range
    return measures.compare(outputs, measures.aligned_truth(dataset, SPLIT), signal_range)


def _masked(trainer: Trainer, dataset: PreparedDataset) -> dict[str, Any]:
    """The pipeline's own evaluation of the networks as they are."""
    model = _model(trainer, dataset)
    found = evaluate_split(dataset, SPLIT, lambda case: translate_case(model, dataset, case))
    return {"pooled": found["pooled"], "cases": found["cases"]}


def _model(trainer: Trainer, dataset: PreparedDataset) -> Model:
    epoch, settings = trainer.state.epoch, trainer.settings
    description = Description(
        format=FORMAT, settings=settings, preparation=dataset.info.preparation, best_epoch=epoch, selection=None
    )  # fmt: skip
    return Model(description, trainer.method.networks["i2i"], trainer.accelerator.device)


def _fid(trainer: Trainer, dataset: PreparedDataset, run: Run) -> dict[str, Any]:
    model, info = _model(trainer, dataset), dataset.info
    cases = sorted(dataset.cases(SPLIT))
    return fid.evaluate(
        (translate_case(model, dataset, case) for case in cases),
        (np.asarray(dataset.image(case, "label_aligned")) for case in cases),
        info.n_dims,
        info.label.background,
        info.label.signal_range,
        axes=FID_AXES,
        device=str(trainer.accelerator.device),
    )


def _for_mlflow(found: Mapping[str, Any]) -> dict[str, Any]:
    """The pooled numbers."""
    return {key: found[key]["pooled"] for key in ("last", "best")} | {"registration": found["registration"] or {}}


def _processor() -> str:
    """The processor's name where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
