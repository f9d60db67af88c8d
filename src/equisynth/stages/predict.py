"""Stage ``predict``: models/<experiment>/ and a prepared dataset -> predictions/<experiment>/<split>/<case>.nii.

An interrupted stage continues after its last finished case.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import Progress

from equisynth.datasets.opened import open_dataset
from equisynth.datasets.prepared import PreparedDataset
from equisynth.description import DESCRIPTION
from equisynth.files import atomic_folder, link, sha256
from equisynth.inference import PICTURE, VOLUME, to_8_bit, translate_volume
from equisynth.model import WEIGHTS, Model, load_model
from equisynth.predictions import new_prediction, prediction_form, prediction_path
from equisynth.work import fingerprint, resumable, say_continuing

SPLITS = ("validate", "test")


def run(
    model: Path,
    prepared: Path,
    out: Path,
    splits: tuple[str, ...] = SPLITS,
    device: str | None = None,
    work: Path = Path(".equisynth/predict"),
) -> None:
    """Translates every case of the splits.

    Args:
        model: folder that training wrote.
        prepared: folder of the prepared dataset.
        out: gets one folder per split; replaced as a whole. Its name is the experiment's.
        device: by default a GPU if there is one.
        work: finished cases wait below it until all are done.
    """
    loaded = load_model(model, device)
    dataset = open_dataset(prepared, loaded.description.settings)
    dataset.require(loaded.description.settings.data, f"the model in {model} was trained on")
    cases = [(split, case) for split in splits for case in sorted(dataset.cases(split))]
    weights, description = (sha256(model / name) for name in (WEIGHTS, DESCRIPTION))
    with resumable(work, out.name, [weights, description, fingerprint(prepared), str(loaded.device)]) as folder:
        paths = {(split, case): prediction_path(dataset, folder, split, case) for split, case in cases}
        todo = [key for key, path in paths.items() if not path.is_file()]
        say_continuing("predict", out.name, len(cases) - len(todo), len(cases))
        _translate(loaded, dataset, {key: paths[key] for key in todo})
        with atomic_folder(out) as temporary:
            for path in paths.values():
                link(path, temporary / path.relative_to(folder))


def _translate(model: Model, dataset: PreparedDataset, paths: Mapping[tuple[str, str], Path]) -> None:
    console = Console(file=sys.stderr)
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(paths))
        for (split, case), path in paths.items():
            bar.update(task, description=f"{split} {case}")
            with new_prediction(path, dataset, case) as out:
                translate_case(model, dataset, case, out)
            bar.advance(task)


def translate_case(
    model: Model, dataset: PreparedDataset, case: str, out: npt.NDArray[Any] | None = None
) -> npt.NDArray[Any]:
    """The prediction of a prepared case, (*S) or (*S, C'): 8-bit colours for pictures, else float32.

    Args:
        out: is written slab by slab, instead of a new array.
    """
    picture = dataset.is_8_bit(case)
    return translate_volume(
        model.predict,
        dataset.image(case, "input"),
        dataset.mask(case, "input"),
        model.description,
        PICTURE if picture else VOLUME,
        batch_size=model.description.settings.batch_size,
        out=np.empty(*prediction_form(dataset, case)) if out is None else out,
        convert=to_8_bit if picture else None,
    )
