"""Predictions cut into 8-bit pictures for other programs: slices of volumes, full-valid tiles of sections.

The command is ``equisynth predict --experiment NAME --save-slices-over-dims 0,1,2 --save-full-valid-tiles``.

```
reports/slices/<name>/<split>/<side>/axis<0..2>/<case>_<slice>.png
reports/tiles/<name>/<split>/<side>/<case>_<row>_<column>.png
```

Values are (value - background) / signal range * 255 of the label, rounded and clipped. ``side``: ``prediction``;
``label``: real images of the label's modality; ``registered`` (tiles): the label after the tile's affine map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from equisynth.datasets.prepared import PreparedDataset
from equisynth.datasets.tiles import window
from equisynth.errors import UserError
from equisynth.evaluation import full_valid
from equisynth.evaluation.by_case import Place, place_name
from equisynth.evaluation.fid import as_8_bit
from equisynth.evaluation.full_valid import FullValidSettings
from equisynth.evaluation.real_images import Cut
from equisynth.evaluation.settings import CACHE, read_settings
from equisynth.files import atomic_folder
from equisynth.params import read
from equisynth.predictions import read_prediction
from equisynth.preprocessing.elastix import RegistrationFailed

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Cuts:
    """What is cut.

    Attributes:
        axes: across which slices of volumes are written.
        tiles: write the full-valid tiles of sections.
        labels: write real images likewise.
    """

    axes: tuple[int, ...] = ()
    tiles: bool = False
    labels: bool = False

    @classmethod
    def chosen(cls, axes: str | None, tiles: bool, labels: bool) -> Cuts | None:
        """What options ask for; None: nothing.

        Raises:
            UserError: they make no sense.
        """
        wanted = () if axes is None else tuple(axes.replace(" ", "").split(","))
        if not set(wanted) <= {"0", "1", "2"}:
            raise UserError(f"--save-slices-over-dims {axes}: expected axes of 0, 1 and 2, such as 0,1,2")
        if not wanted and not tiles:
            if labels:
                raise UserError("--save-labels: goes with --save-slices-over-dims or --save-full-valid-tiles; add one")
            return None
        return cls(tuple(sorted({int(axis) for axis in wanted})), tiles, labels)


def save(
    cuts: Cuts,
    dataset: PreparedDataset,
    predictions: Path,
    name: str,
    splits: Sequence[str],
    reports: Path = Path("reports"),
) -> None:
    """Writes what is asked for, and says how much.

    Args:
        predictions: holds ``<split>/<case>.nii``.
        name: of the folders that are written.

    Raises:
        UserError: the dataset cannot be cut so.
    """
    for split in splits:
        if cuts.axes:
            out = reports / "slices" / name / split
            count = save_slices(dataset, predictions, split, cuts.axes, out, cuts.labels)
            print(f"{count} slices of predictions in {out}")
        if cuts.tiles:
            settings = read_settings(read()).full_valid or FullValidSettings()
            out, cache = reports / "tiles" / name / split, CACHE / dataset.info.name
            count = save_tiles(dataset, predictions, split, settings, out, cache if cuts.labels else None)
            print(f"{count} full-valid tiles of predictions in {out}")


def save_slices(
    dataset: PreparedDataset, predictions: Path, split: str, axes: Sequence[int], out: Path, with_labels: bool = False
) -> int:
    """Writes all slices of a split across the axes, the folder as a whole; how many of the predictions.

    Args:
        predictions: holds ``<split>/<case>.nii``.
        out: gets ``prediction/axis0/<case>_0042.png``, and ``label/...`` likewise.
        with_labels: write the real images too.

    Raises:
        UserError: there are no volumes.
    """
    if dataset.info.n_dims != 3:
        raise UserError(f"{dataset.folder}: holds pictures, not volumes; there are no slices to save")
    count = 0
    with atomic_folder(out) as temporary:
        for case in sorted(dataset.cases(split)):
            sides = {"prediction": read_prediction(dataset, predictions, split, case)}
            if with_labels:
                sides["label"] = dataset.image(case, Cut(dataset, split, tuple(axes), FullValidSettings()).role)
            for side, volume in sides.items():
                for axis in axes:
                    folder = temporary / side / f"axis{axis}"
                    for index, values in enumerate(np.moveaxis(np.asarray(volume), axis, 0)):
                        _save(dataset, values, folder / f"{case}_{index:04d}.png")
                        count += side == "prediction"
    return count


def save_tiles(
    dataset: PreparedDataset,
    predictions: Path,
    split: str,
    settings: FullValidSettings,
    out: Path,
    cache: Path | None = None,
) -> int:
    """Writes the full-valid tiles of a split, the folder as a whole; how many of the predictions.

    Args:
        predictions: holds ``<split>/<case>.tif``, or ``.nii``.
        out: gets ``prediction/<case>_<row>_<column>.png``, and ``label/...`` and ``registered/...`` likewise.
        cache: of the tiles' maps, see `full_valid`; None: predictions alone are written.

    Raises:
        UserError: the images are no sections.
    """
    reason = full_valid.lacking(dataset, split)
    if reason is not None:
        raise UserError(f"{dataset.folder}: {reason}; there are no full-valid tiles to save")
    count = 0
    with atomic_folder(out) as temporary:
        for case in sorted(dataset.cases(split)):
            prediction = read_prediction(dataset, predictions, split, case)
            for start in full_valid.full_valid_starts(dataset, case, settings):
                name = f"{case}_{'_'.join(map(str, start))}.png"
                tile = np.asarray(prediction[window(start, (settings.tile, settings.tile))])
                _save(dataset, tile, temporary / "prediction" / name)
                count += 1
                if cache is not None:
                    for side, values in _real_tiles(dataset, case, start, settings, cache):
                        _save(dataset, values, temporary / side / name)
    return count


def _real_tiles(
    dataset: PreparedDataset, case: str, start: Place, settings: FullValidSettings, cache: Path
) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    tile = full_valid.read_tile(dataset, case, start, settings.tile)
    yield "label", tile.label
    try:
        affine = full_valid.found_map(tile, settings.registration, cache, place_name(case, start))
    except RegistrationFailed:  # the evaluation says so
        return
    yield "registered", full_valid.registered_label(tile, affine)


def _save(dataset: PreparedDataset, values: npt.NDArray[Any], path: Path) -> None:
    from PIL import Image

    label = dataset.info.label
    path.parent.mkdir(parents=True, exist_ok=True)
    picture: Picture = as_8_bit(values, label.background, label.signal_range)
    Image.fromarray(picture).save(path)
