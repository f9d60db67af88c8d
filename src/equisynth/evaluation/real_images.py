"""Both sides of the FID: which real images stand for the label's modality, and how they and the predictions are cut.

What the network says of the real side serves every model of a dataset and is kept as files (stage ``real-images``). Who
evaluates a model first checks that it is of the very images to compare with (pairs are made at the size that an
experiment chooses) and of the same weights; if not, the real images pass the network there and then, and the result
says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from equisynth.config import Strict
from equisynth.datasets.prepared import PreparedDataset
from equisynth.datasets.tiles import window
from equisynth.evaluation import fid
from equisynth.evaluation.frechet import Unavailable, compare, number_of_images
from equisynth.evaluation.full_valid import FullValidSettings, full_valid_starts, lacking
from equisynth.files import atomic_folder, read_json, write_json
from equisynth.work import Arrays, Remember, anew

FOLDER = Path("reports/real_images")
"""Holds a folder per dataset."""
FILE = "real_images.json"
BLOCK = 1 << 24


class FidSettings(Strict):
    """``weights``: a file of pytorch-fid's Inception weights; ``axes``: across which volumes are cut into slices."""

    weights: Path = fid.LOCAL_WEIGHTS  # a file of pytorch-fid's Inception weights
    axes: tuple[Literal[0, 1, 2], ...] = (0, 1, 2)  # across which volumes are cut into slices


@dataclass(frozen=True)
class Cut:
    """How the images of a split become pictures for the network: real ones, and predictions on the same grids.

    Volumes are cut into all their slices, empty ones too. Sections of tissue are cut into full-valid tiles: what a
    model makes of a place without a label has no real counterpart. Pictures with an aligned label are taken whole, and
    so are sections that are all smaller than a tile.

    Args:
        dataset: what the predictions are made from.
        axes: across which volumes are cut.
        tiles: of sections.
    """

    dataset: PreparedDataset
    split: str
    axes: tuple[int, ...]
    tiles: FullValidSettings

    @cached_property
    def cases(self) -> tuple[str, ...]:
        return tuple(sorted(self.dataset.cases(self.split)))

    @cached_property
    def role(self) -> str:
        """Of the real images: the aligned label where all cases have it, else the one that models train on."""
        aligned = all(self.dataset.has(case, "label_aligned") for case in self.cases)
        return "label_aligned" if aligned else "label"

    @cached_property
    def kind(self) -> Literal["slices", "tiles", "whole"]:
        if self.dataset.info.n_dims == 3:
            return "slices"
        if self.role == "label_aligned" or lacking(self.dataset, self.split) is not None:
            return "whole"
        return "tiles" if any(min(self.dataset.shape(case)) >= self.tiles.tile for case in self.cases) else "whole"

    def describe(self) -> dict[str, Any]:
        """In words and numbers, for JSON."""
        label = self.dataset.info.label
        how: dict[str, Any] = {
            "slices": {"axes": list(self.axes)},
            "tiles": self.tiles.model_dump(mode="json", include={"tile", "stride", "min_input_share"}),
            "whole": {},
        }[self.kind]
        values = {"background": label.background, "signal_range": label.signal_range}
        return {"split": self.split, "role": self.role, "cut": self.kind, **how, **values}

    def pictures(self, case: str, image: np.ndarray) -> fid.Stacks:
        """Of one image (*S) or (*S, C) on a case's grid."""
        info = self.dataset.info
        if self.kind != "tiles":
            yield from fid.whole(image, info.n_dims, info.label.background, info.label.signal_range, self.axes)
            return
        for start in self.starts(case):
            tile = np.asarray(image[window(start, (self.tiles.tile,) * 2)])
            yield "tiles", fid.as_8_bit(tile[None], info.label.background, info.label.signal_range)

    def starts(self, case: str) -> list[tuple[int, ...]]:
        """First pixels of a section's tiles."""
        return full_valid_starts(self.dataset, case, self.tiles) if self.kind == "tiles" else []

    def real(self) -> Iterator[tuple[str, fid.Stacks]]:
        for case in self.cases:
            yield f"label-{case}", self.pictures(case, self.dataset.image(case, self.role))

    def predicted(self, prediction: Callable[[str], np.ndarray]) -> Iterator[tuple[str, fid.Stacks]]:
        for case in self.cases:
            yield f"prediction-{case}", self.pictures(case, prediction(case))

    def sha256(self) -> str:
        """Of all that the real pictures are made from: equal hashes, equal pictures."""
        digest = hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode())
        for case in self.cases:
            image = self.dataset.image(case, self.role)
            digest.update(repr((case, image.shape, str(image.dtype), self.starts(case))).encode())
            values = image.reshape(-1, order="A")  # no copy of a memory map
            for first in range(0, values.size, BLOCK):
                digest.update(np.ascontiguousarray(values[first : first + BLOCK]).data)
        return digest.hexdigest()


# --- kept


def keep(folder: Path, cut: Cut | str, weights: Path, remember: Remember = anew) -> None:
    """Passes the real side through the network: ``<folder>/real_images.json`` and ``<cut>.npz``; or says why not.

    Args:
        folder: replaced as a whole.
        cut: a string: why there is none.
        remember: may know a case from an interrupted run.
    """
    try:
        if isinstance(cut, str):
            raise Unavailable(cut)
        network = fid.Network(weights)
        samples = network.sample(cut.real(), remember)
        said = {
            "computed": True,
            **cut.describe(),
            "images": {name: number_of_images(sample) for name, sample in samples.items()},
            "images_sha256": cut.sha256(),
            "weights_sha256": network.sha256,
        }
    except Unavailable as reason:
        samples, said = {}, {"computed": False, "reason": str(reason)}
    with atomic_folder(folder) as temporary:
        for name, sample in samples.items():
            np.savez(temporary / f"{name}.npz", **sample)  # type: ignore[arg-type]
        write_json(temporary / FILE, said)


def kept(folder: Path, cut: Cut, weights_sha256: str) -> tuple[dict[str, Arrays] | None, str]:
    """The real side from a folder, if it is the wanted one; and where it comes from, in words."""
    if not (folder / FILE).is_file():
        return None, f"computed here: {folder} is absent"
    said = read_json(folder / FILE)
    if not said["computed"]:
        return None, f"computed here: {folder} holds no statistics"
    if said["weights_sha256"] != weights_sha256:
        return None, f"computed here: {folder} is of other weights"
    if said["images_sha256"] != cut.sha256():
        return None, f"computed here: {folder} is of other images"
    samples = {}
    for name in said["images"]:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as stored:
            samples[name] = dict(stored)
    return samples, str(folder)


# --- compared


def evaluate(
    dataset: PreparedDataset,
    split: str,
    prediction: Callable[[str], np.ndarray],
    settings: FidSettings,
    tiles: FullValidSettings,
    real: Path | None = None,
    remember: Remember = anew,
) -> dict[str, Any]:
    """FID of a split's predictions, for JSON.

    Args:
        prediction: case -> (*S) or (*S, C), raw units.
        real: folder of the kept real side; by default `FOLDER` with the name of the dataset's folder.
        remember: may know a case from an interrupted run.

    Returns:
        ``{"split", "computed": True, <cut>: {"value", "images", "real_images", "weights_sha256"[, "warning"]}, ...,
        "weights_sha256", "real_side"}`` with the cuts ``axis0`` to ``axis2``, ``tiles`` or ``images``; or ``{"split",
        "computed": False, "reason"}``.
    """
    cut = Cut(dataset, split, settings.axes, tiles)
    try:
        network = fid.Network(settings.weights)
        folder = FOLDER / dataset.folder.name if real is None else real
        samples, source = kept(folder, cut, network.sha256)
        if samples is None:
            samples = network.sample(cut.real(), remember)
        predicted = network.sample(cut.predicted(prediction), remember)
        return {"split": split, **compare(predicted, samples, network.sha256), "real_side": source}
    except Unavailable as reason:
        return {"split": split, "computed": False, "reason": str(reason)}
