"""Stage ``real-images``: data/prepared/<dataset>/ -> reports/real_images/<dataset>/, the real side of the FID.

``real_images.json`` says what was cut how, the number of images and the weights' SHA-256; beside it lies a file per
cut: ``activations`` (images, 2048) of at most 2048 images, else ``mu`` and ``sigma``, as pytorch-fid reads them, and
``images``, their number. Without weights the JSON says why there is nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from equisynth.config import LabelDeformation, Ranges, Strict
from equisynth.datasets.prepared import PreparedDataset
from equisynth.evaluation.full_valid import FullValidSettings
from equisynth.evaluation.real_images import FOLDER, Cut, FidSettings, keep
from equisynth.params import Tree, merge, read
from equisynth.validation import validate
from equisynth.work import count_remembered, fingerprint, remembered, resumable, say_continuing

NOWHERE = Ranges(lower=(0, 0), upper=(0, 0))
STILL = LabelDeformation(
    width_range=Ranges(lower=(1, 1), upper=(1, 1)), magnitude_range=NOWHERE, center_range=NOWHERE,
    degree_range=Ranges(lower=(0,), upper=(0,)), translation_range=NOWHERE,
)  # fmt: skip
"""Aligned labels do not depend on it."""


class RealImagesSettings(Strict):
    """What the section ``evaluation`` says of the real side; what else stands there, who evaluates checks."""

    split: Literal["train", "validate", "test"] = "test"
    fid: FidSettings = FidSettings()
    full_valid: FullValidSettings | None = None


def run(dataset: str, prepared: Path, reports: Path = FOLDER, work: Path = Path(".equisynth/real_images")) -> None:
    """Passes the real images of a dataset through the network.

    Args:
        dataset: its name below ``datasets`` in ``params.yaml``.
        work: finished cases wait below it until all is done.
    """
    tree = read()
    section = merge(tree["evaluation"], (tree["evaluation"].get("scales") or {}).get(tree["scale"]) or {})
    chosen = {key: section[key] for key in RealImagesSettings.model_fields if key in section}
    settings = validate(RealImagesSettings, chosen, "evaluation")
    opened = real_dataset(prepared, training(tree, dataset))
    tiles = settings.full_valid or FullValidSettings()
    cut = opened if isinstance(opened, str) else Cut(opened, settings.split, settings.fid.axes, tiles)
    what = cut if isinstance(cut, str) else cut.describe()
    with resumable(work, dataset, [what, fingerprint(prepared)]) as folder:
        say_continuing("real_images", dataset, count_remembered(folder))
        keep(reports / dataset, cut, settings.fid.weights, remembered(folder))


def real_dataset(prepared: Path, settings: Tree) -> PreparedDataset | str:
    """A prepared dataset; pairs of the size that most experiments have, where only pictures are stored.

    Args:
        settings: of the dataset's trainings, before what methods and experiments say.

    Returns:
        A string: why nobody knows the real images before an experiment does.
    """
    dataset = PreparedDataset.open(prepared)
    if "label" in dataset.info.stored:
        return dataset
    if "patch_size" not in settings:
        return "pairs are made at patch_size, which only experiments say"
    from equisynth.datasets.synthetic import SyntheticDataset  # compiled code that other datasets do without

    return SyntheticDataset(dataset, STILL, settings["patch_size"], seed=0)


def training(tree: Tree, dataset: str) -> Tree:
    """What a dataset and the present scale say of every training."""
    scale = (tree["scales"][tree["scale"]].get(dataset) or {}).get("training") or {}
    return merge(tree["datasets"][dataset]["training"], scale)
