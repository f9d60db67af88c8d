"""Several processes train as one does on the joined batch, write once, and end together with one line.

``torchrun`` starts this file itself: ``torchrun --nproc-per-node 2 tests/test_processes.py TASK FOLDER``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from equisynth.datasets.prepared import DatasetInfo, write_case, write_info
from equisynth.errors import UserError
from equisynth.files import read_json
from equisynth.methods.base import Method
from equisynth.params import read, resolve
from equisynth.processes import Processes, joined
from equisynth.stages import train
from equisynth.store import open_store
from small_trainings import BATCH, CASES, EPOCHS, Pairs, trainer

pytest_plugins = ["mlflow_repository"]
ROOT = Path(__file__).parents[1]
COUNT = 2


def _record(steps: list[dict[str, Tensor]], method: Method, optimiser: str, *_: object) -> None:
    """Appends the gradients with which an optimiser steps, by parameter."""
    found = {
        f"{network}.{name}": parameter.grad.clone()
        for network, module in method.networks.items()
        if (network == "discriminator") == (optimiser == "discriminator")
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    steps.append(found)


def states(method: Method) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for name, net in method.networks.items() for key, value in net.state_dict().items()}


def train_all(folder: Path, processes: Processes) -> None:
    """Trains each case; what came of it is one file per case and process."""
    for case in CASES:
        made = trainer(case, folder / case, processes)
        steps: list[dict[str, Tensor]] = []
        for name, optimiser in made.method.optimisers.items():
            optimiser.optimizer.register_step_pre_hook(partial(_record, steps, made.method, name))
        history = made.fit().history
        found = {"steps": steps, "history": history, "states": states(made.method), "taken": made.samples.taken}
        torch.save(found, folder / f"{case} {processes.rank}.pt")


def main() -> None:
    """One of several processes."""
    task, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    try:
        with joined() as processes:
            if task == "train":
                train_all(folder, processes)
                diverge(folder / "diverging", processes)
            else:
                fail_in_one(folder, processes)
    except UserError as error:
        print(f"equisynth: {error}", file=sys.stderr)
        sys.exit(2)


def diverge(folder: Path, processes: Processes) -> None:
    """Infinite values in one process's share of the second epoch."""
    made = trainer("supervised", folder, processes)
    made.samples = Pairs(made.settings, 2 * BATCH, poison=(2, 2 * BATCH - 1))
    made.fit(lambda record, seconds: print("report of epoch", int(record["epoch"]), file=sys.stderr))


def fail_in_one(folder: Path, processes: Processes) -> None:
    """An error that only the second process meets, while the first waits for its gradients."""
    made = trainer("supervised", folder, processes)
    if processes.rank == 1:
        made.validation_samples = Absent()
    made.fit()


class Absent(Pairs):
    def __init__(self) -> None:
        self.count = BATCH + 1

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        raise UserError(f"sample {index} is absent")


def launch(*command: str) -> tuple[list[str], int]:
    """Runs a command in several processes; their lines on stderr, without the launcher's own, and the exit code."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(COUNT))
    done = subprocess.run(
        (*launcher, *command), env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    lines = done.stderr.splitlines()
    end = next((i for i, line in enumerate(lines) if "torch/distributed/elastic" in line), len(lines))
    return lines[:end], done.returncode


@dataclass
class Together:
    """What two processes made of the cases."""

    folder: Path
    lines: list[str]
    code: int

    def __getitem__(self, case: str) -> list[dict[str, Any]]:
        return [torch.load(self.folder / f"{case} {rank}.pt", weights_only=True) for rank in range(COUNT)]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Together:
    folder = tmp_path_factory.mktemp("together")
    return Together(folder, *launch(__file__, "train", str(folder)))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("alone")
    train_all(folder, Processes())
    return {case: torch.load(folder / f"{case} 0.pt", weights_only=True) for case in CASES}


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Largest of all tensors, each relative to its largest element."""
    assert found.keys() == expected.keys()
    return max(float((found[key] - expected[key]).abs().max() / expected[key].abs().max()) for key in expected)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_one_process_on_the_joined_batch(
    together: Together, alone: dict[str, dict[str, Any]], case: str
) -> None:
    """Of every network, in the first update of each optimiser.

    To 1e-5 of a tensor's largest gradient, and what single precision leaves of the network's largest one: where sums
    of large terms cancel, the order of summation alone moves them by more.
    """
    expected = alone[case]["steps"]
    first = 2 if "discriminator" in CASES[case] or case == "pix2pix" else 1
    assert len(expected) == first * 2 * EPOCHS
    largest: list[dict[str, float]] = []  # of each network
    for step in expected[:first]:
        largest.append({})
        for name, value in step.items():
            network = name.split(".")[0]
            largest[-1][network] = max(largest[-1].get(network, 0.0), float(value.abs().max()))
    networks = {name for step in largest for name in step}
    assert networks >= {"i2i", *(["discriminator"] if first == 2 else [])}
    if case.startswith("equivariant"):
        assert networks == {"i2i", "rigid_registration", "cross_registration", "intra_registration", "discriminator"}
    for found in together[case]:
        for step in range(first):
            assert found["steps"][step].keys() == expected[step].keys()
            for name, value in expected[step].items():
                noise = 1e-6 * largest[step][name.split(".")[0]]
                error = float((found["steps"][step][name] - value).abs().max())
                assert error <= 1e-5 * float(value.abs().max()) + noise, name


@pytest.mark.parametrize("case", CASES)
def test_trainings_agree(together: Together, alone: dict[str, dict[str, Any]], case: str) -> None:
    one, (first, second) = alone[case], together[case]
    assert sorted(first["taken"] + second["taken"]) == sorted(one["taken"])
    assert not set(first["taken"]) & set(second["taken"])
    for key, value in one["history"][0].items():
        assert first["history"][0][key] == pytest.approx(value, rel=1e-5, abs=1e-7), key
    assert first["history"] == second["history"]
    assert difference(first["states"], one["states"]) < 5e-4


@pytest.mark.parametrize("case", CASES)
def test_processes_stay_equal_to_the_last_bit(together: Together, case: str) -> None:
    """Also the buffers of spectral norms, whose power iterations each process makes for itself."""
    first, second = (found["states"] for found in together[case])
    assert any(name.endswith("._u") for name in first) == ("discriminator" in CASES[case])
    assert {name for name in first if not torch.equal(first[name], second[name])} == set()


@pytest.mark.parametrize("case", CASES)
def test_one_process_continues_what_several_began(together: Together, case: str) -> None:
    made = trainer(case, together.folder / case, epochs=EPOCHS + 1)
    assert made.state.epoch == EPOCHS
    saved = together[case][0]
    assert made.state.history == saved["history"]
    assert all(torch.equal(value, saved["states"][name]) for name, value in states(made.method).items())


def test_divergence_stops_all_with_one_line_and_reports_come_once(together: Together) -> None:
    assert together.code != 0
    report, line = together.lines
    assert report == "report of epoch 1"
    assert line.startswith("equisynth: training diverged: ")
    assert "in epoch 2" in line
    assert "the checkpoint of epoch 1 is kept" in line


def test_an_error_in_one_process_ends_all_with_its_line(tmp_path: Path) -> None:
    assert launch(__file__, "fail", str(tmp_path)) == (["equisynth: sample 4 is absent"], 1)


EXPERIMENT = "ixi-noreg"
SMALLEST: dict[str, Any] = {
    "patch_size": [16, 16, 16], "training_stride": [8, 8, 8], "inference_stride": [12, 12, 12],
    "epochs": 2, "epoch_steps": 2,
    "features": {"i2i": [4, 8]},
}  # fmt: skip


def write_repository(folder: Path) -> None:
    """The project's parameters with one tiny experiment, and its prepared dataset of random images."""
    tree = read(ROOT / "params.yaml")
    tree["pipeline"] = {EXPERIMENT: {"dataset": "ixi", "method": "noreg", "code": "supervised", "overrides": SMALLEST}}
    (folder / "params.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    prepared, data = folder / "data/prepared/ixi", resolve(tree, EXPERIMENT).data
    splits, random = {"train": ("a", "b"), "validate": ("c",), "test": ("d",)}, np.random.RandomState(0)
    for case in "abcd":
        arrays = {role: random.rand(24, 24, 24).astype(np.float32) for role in ("input", "label")}
        write_case(prepared, case, arrays, np.eye(4), n_dims=3)
    write_info(prepared, DatasetInfo(**data.model_dump(), name="ixi", splits=splits))


def test_the_command_trains_tracks_and_writes_once(repository: Path) -> None:
    write_repository(repository)
    lines, code = launch("-m", "equisynth", "train", EXPERIMENT)
    assert code == 0, lines
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    client = open_store()
    (run,) = client.search_runs([found.experiment_id for found in client.search_experiments()])
    assert run.info.status == "FINISHED"
    assert run.data.params["precision"] == "no"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "validation/selection")] == [1, 2]
    (checkpoints,) = (repository / ".equisynth/checkpoints").iterdir()

    history, weights = repository / f"reports/history/{EXPERIMENT}.json", repository / f"models/{EXPERIMENT}"
    together = read_json(history)
    written = (weights / "model.safetensors").read_bytes()
    shutil.rmtree(weights)
    command = (sys.executable, "-m", "equisynth", "train", EXPERIMENT)
    subprocess.run(command, cwd=repository, check=True, capture_output=True)
    assert (weights / "model.safetensors").read_bytes() == written  # one process continued what two had finished

    shutil.rmtree(checkpoints)
    train.run(EXPERIMENT, Path("data/prepared/ixi"), Path("models") / EXPERIMENT)
    assert read_json(history)[0] == pytest.approx(together[0], rel=1e-5, abs=1e-6)


def test_shares_are_those_of_each_half() -> None:
    assert [Processes(rank, 2).share(8, halved=True) for rank in range(2)] == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert [Processes(rank, 3).share(6, halved=False) for rank in range(3)] == [[0, 1], [2, 3], [4, 5]]
    assert Processes().share(5, halved=True) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("batch_size", "halved", "multiple"), [(6, True, 4), (5, True, 4), (3, False, 2)])
def test_a_batch_that_cannot_be_shared_is_refused(batch_size: int, halved: bool, multiple: int) -> None:
    with pytest.raises(UserError, match=f"batch_size is {batch_size}, expected a multiple of {multiple}: 2 processes"):
        Processes(0, 2).share(batch_size, halved)


def test_what_one_process_does_is_refused_in_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="only `equisynth train` uses more"):
        trainer("supervised", tmp_path)


if __name__ == "__main__":
    main()
