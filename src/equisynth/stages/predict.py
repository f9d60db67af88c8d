"""Stage ``predict``: models/<experiment>/ and a prepared dataset -> predictions/<experiment>/<split>/<case>.nii."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from equisynth.datasets.prepared import PreparedDataset
from equisynth.files import atomic_folder
from equisynth.inference import PICTURE, VOLUME, to_8_bit, translate_volume
from equisynth.model import Model, load_model
from equisynth.predictions import write_prediction

SPLITS = ("validate", "test")


def run(model: Path, prepared: Path, out: Path, splits: tuple[str, ...] = SPLITS, device: str | None = None) -> None:
    """Translates every case of the splits.

    Args:
        model: folder that training wrote.
        prepared: folder of the prepared dataset.
        out: gets one folder per split; replaced as a whole.
        device: by default a GPU if there is one.
    """
    loaded, dataset = load_model(model, device), PreparedDataset.open(prepared)
    dataset.require(loaded.description.settings.data, f"the model in {model} was trained on")
    cases = [(split, case) for split in splits for case in sorted(dataset.cases(split))]
    console = Console(file=sys.stderr)
    with atomic_folder(out) as temporary, Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(cases))
        for split, case in cases:
            bar.update(task, description=f"{split} {case}")
            write_prediction(temporary / split / f"{case}.nii", translate_case(loaded, dataset, case), dataset, case)
            bar.advance(task)


def translate_case(model: Model, dataset: PreparedDataset, case: str) -> np.ndarray:
    """The prediction of one prepared case, (*S) or (*S, C'): float32 for volumes, 8-bit colours for pictures."""
    picture = dataset.info.n_dims == 2
    result = translate_volume(
        model.predict,
        dataset.image(case, "input"),
        dataset.mask(case, "input"),
        model.description,
        PICTURE if picture else VOLUME,
        batch_size=model.description.settings.batch_size,
    )
    return to_8_bit(result) if picture else result
