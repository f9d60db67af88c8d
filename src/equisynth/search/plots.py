"""Pictures of a study: its history, which parameters matter, and what each of them does."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from equisynth.files import atomic_folder

if TYPE_CHECKING:
    from optuna import Study

FEWEST = 2
"""Finished trials that a comparison takes."""


def draw(study: Study, folder: Path, objective: str) -> list[str]:
    """Writes history.png, slices.png and importances.png, all or none, in place of what the folder held.

    Returns:
        names of the files; importances are left out where they cannot be told apart.
    """
    import matplotlib
    import optuna.visualization.matplotlib as plots
    from matplotlib import pyplot
    from optuna.exceptions import ExperimentalWarning
    from optuna.trial import TrialState

    matplotlib.use("Agg", force=True)
    values = [trial.value for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))]
    names = {"history": plots.plot_optimization_history, "slices": plots.plot_slice} if values else {}
    if len(values) >= FEWEST and len(set(values)) >= FEWEST:
        names["importances"] = plots.plot_param_importances
    with warnings.catch_warnings(), atomic_folder(folder) as temporary:
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.simplefilter("ignore", UserWarning)
        for name, plot in names.items():
            plot(study, target_name=objective)
            pyplot.gcf().savefig(temporary / f"{name}.png", dpi=100, bbox_inches="tight")
            pyplot.close("all")
    return [f"{name}.png" for name in names]
