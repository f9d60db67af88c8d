"""What an experiment trains on and is judged by: a prepared dataset, or pairs made from its pictures."""

from __future__ import annotations

from pathlib import Path

from equisynth.config import Settings
from equisynth.datasets.prepared import PreparedDataset

PAIRS = Path(".equisynth/pairs")
"""Finished labels, shared by all experiments; may be deleted at any time."""


def open_dataset(prepared: Path, settings: Settings) -> PreparedDataset:
    """The dataset of an experiment.

    Pairs have the size of a patch, and deformations that follow from the preparation's seed: all experiments with the
    same ranges see the same ones.

    Args:
        prepared: folder of the prepared dataset.
        settings: ``label_deformation``, if any, says that pairs are made.

    Raises:
        UserError: the folder holds no whole prepared dataset, or pairs cannot be made from it.
    """
    dataset = PreparedDataset.open(prepared)
    if settings.label_deformation is None:
        return dataset
    from equisynth.datasets.synthetic import SyntheticDataset  # compiled code that other datasets do without

    seed = dataset.info.preparation.get("seed", 0)
    return SyntheticDataset(dataset, settings.label_deformation, settings.patch_size, seed, PAIRS)
