"""What `predict` and `evaluate` work on when options ask for something else than the pipeline's own stage.

A variant has a name of its own, ``<experiment>.epoch12.train``, and so files of its own: those that the pipeline knows
are never touched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from equisynth.cuts import Cuts, save
from equisynth.datasets.prepared import PreparedDataset
from equisynth.datasets.splits import SPLITS
from equisynth.description import read_description, write_description
from equisynth.errors import UserError
from equisynth.evaluation import parts
from equisynth.evaluation.settings import CACHE, Options, read_settings
from equisynth.files import atomic_folder, link
from equisynth.model import WEIGHTS
from equisynth.params import read
from equisynth.stages import evaluate as evaluation
from equisynth.stages import predict as prediction

BEST = "best"
PREDICTIONS = Path("predictions")
EPOCHS = Path(".equisynth/epochs")
"""Models of other epochs than the best one, as folders like any model's."""


@dataclass(frozen=True)
class Variant:
    """An epoch's model and the splits it is applied to.

    Attributes:
        experiment: in ``models/``.
        suffixes: of its name; none: what the pipeline does.
        models: the folder that holds the model, as ``<model>``.
        model: its name there.
        splits: in this order.
    """

    experiment: str
    suffixes: tuple[str, ...]
    models: Path
    model: str
    splits: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its predictions."""
        return ".".join([self.experiment, *self.suffixes])

    def named(self, options: Options) -> str:
        """Of its evaluation, where options change numbers that it depends on: ``<name>.seed3``."""
        return ".".join([self.name, *(f"{key}{value:g}" for key, value in options.items() if value is not None)])

    def predictions(self, folder: Path = PREDICTIONS) -> Path:
        """Where its predictions are: its own, or those of the same model for more splits.

        Raises:
            UserError: nowhere.
        """
        found = [folder / self.name, folder / self.model]
        if not self.suffixes:
            return found[0]
        for candidate in found:
            if all((candidate / split).is_dir() for split in self.splits):
                return candidate
        options = [f"--epoch {self.model.rpartition('.epoch')[2]}"] if self.model != self.experiment else []
        options += [f"--split {self.splits[0]}"] if len(self.splits) == 1 else []
        command = " ".join(["equisynth predict --experiment", self.experiment, *options])
        raise UserError(f"{found[0]}: not found; make it: {command}")


@dataclass(frozen=True)
class Registering:
    """How registrations are found.

    Attributes:
        part: ``2/5``: find these alone, measure nothing.
        cache: folder that keeps them; default: that of the dataset.
        jobs: processes (-1: one per core).
        options: instead of what params.yaml says, see `read_settings`.
    """

    part: str | None = None
    cache: Path | None = None
    jobs: int = -1
    options: Options = field(default_factory=dict)


def predict(
    experiment: str, prepared: Path, split: str | None, epoch: str, cuts: Cuts | None = None, device: str | None = None
) -> None:
    """Translates what options ask for, and cuts it into pictures.

    What the pipeline has predicted is not predicted again to be cut.
    """
    variant = chosen(experiment, split, epoch)
    out = PREDICTIONS / variant.name
    if variant.suffixes or cuts is None or not out.is_dir():
        prediction.run(variant.models / variant.model, prepared, out, variant.splits, device)
    if cuts is not None:
        save(cuts, PreparedDataset.open(prepared), out, variant.name, variant.splits)


def evaluate(experiment: str, prepared: Path, split: str | None, epoch: str, registering: Registering) -> None:
    """Measures what options ask for, or finds one machine's part of the registrations that this needs."""
    settings = read_settings(read(), registering.options)
    cache = registering.cache or CACHE / prepared.name
    if registering.part is not None:
        splits = splits_of(split)
        print(parts.run(experiment, prepared, registering.part, splits, settings, cache, registering.jobs))
        return
    variant = chosen(experiment, split, epoch)
    evaluation.run(
        variant.model,
        prepared,
        variant.predictions(),
        models=variant.models,
        name=variant.named(registering.options),
        splits=variant.splits,
        settings=settings,
        cache=cache,
        jobs=registering.jobs,
    )


def chosen(
    experiment: str, split: str | None = None, epoch: str = BEST, models: Path = Path("models"), epochs: Path = EPOCHS
) -> Variant:
    """The variant that options ask for; without any, the experiment as the pipeline has it.

    Args:
        split: None: all that are evaluated.
        epoch: ``best``, or the number of one whose weights are kept.
        epochs: gets the model of the epoch.

    Raises:
        UserError: there is no such split or epoch.
    """
    splits = splits_of(split)
    suffixes = () if split is None else (split,)
    if epoch == BEST:
        return Variant(experiment, suffixes, models, experiment, splits)
    model = epoch_model(models / experiment, epoch, epochs)
    return Variant(experiment, (model.suffix[1:], *suffixes), epochs, model.name, splits)


def splits_of(split: str | None) -> tuple[str, ...]:
    """The splits that an option names; all that the pipeline evaluates without it.

    Raises:
        UserError: there is no such split.
    """
    if split is not None and split not in SPLITS:
        raise UserError(f"--split {split}: expected one of {', '.join(SPLITS)}")
    return evaluation.SPLITS if split is None else (split,)


def epoch_model(model: Path, epoch: str, epochs: Path = EPOCHS) -> Path:
    """A model's folder with the weights of one of its last epochs in place of the best one's.

    Raises:
        UserError: the weights of this epoch are not kept.
    """
    kept = {int(path.stem.rpartition("_")[2]): path for path in sorted(model.glob("epochs/epoch_*.safetensors"))}
    if not epoch.isdecimal() or int(epoch) not in kept:
        known = f"kept are {', '.join(map(str, kept))}" if kept else "none are kept"
        raise UserError(f"--epoch {epoch}: {model / 'epochs'} has no weights of it; {known}; or take {BEST}")
    number = int(epoch)
    folder = epochs / f"{model.name}.epoch{number}"
    description = read_description(model).model_copy(update={"best_epoch": number, "selection": None})
    with atomic_folder(folder) as temporary:
        link(kept[number], temporary / WEIGHTS)
        write_description(temporary, description)
    return folder
