"""Optuna's side: storage, study, sampler, pruner, ranges."""

from __future__ import annotations

import fcntl
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equisynth import store
from equisynth.errors import UserError
from equisynth.files import hash_json
from equisynth.search.settings import Choices, SearchSettings, Space
from equisynth.search.space import SEED
from equisynth.validation import FILE

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage

FOLDER = Path(".equisynth/search")
ATTEMPTS = 3
"""Two machines that open an empty database at once get into each other's way; the second time the tables are there."""
HIGHEST_SEED = 2**31 - 1


def open_study(name: str, experiment: str, options: SearchSettings, create: bool = True) -> Study | None:
    """The study of a name; None if there is none and it is not to be created."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _without_warnings(), _whole_journal(experiment, options):
        storage = _storage(experiment, options)
        if not create and name not in optuna.get_all_study_names(storage):
            return None
        study = optuna.create_study(storage=storage, study_name=name, load_if_exists=True, direction="minimize")
    study.pruner = _pruner(options)
    return study


def journal(experiment: str) -> Path:
    """The journal file of an experiment's studies."""
    return FOLDER / f"{experiment}.journal"


def alone(name: str) -> AbstractContextManager[None]:
    """One process of this machine at a time looks at a study and acts on what it saw."""
    return store.alone(f"{FOLDER.name}/{name}")


def set_sampler(study: Study, options: SearchSettings) -> None:
    """A sampler for the next trial: what it draws follows from the seed and the number of trials before.

    Machines that share a database draw different values, even if they begin at the same time.
    """
    from optuna import samplers

    place = None if options.storage is None else socket.gethostname()
    seed = int(hash_json([options.seed, len(study.get_trials(deepcopy=False)), place], 7), 16)
    startup = options.startup_trials
    with _without_warnings():
        if options.sampler == "tpe":
            study.sampler = samplers.TPESampler(n_startup_trials=startup, seed=seed, constant_liar=True)
        elif options.sampler == "gp":
            study.sampler = samplers.GPSampler(n_startup_trials=startup, seed=seed)
        else:
            study.sampler = samplers.RandomSampler(seed)


def distributions(space: Space, seeds: bool = False) -> dict[str, Any]:
    """Optuna's ranges; with ``seeds`` also that of fresh seeds."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {SEED: IntDistribution(0, HIGHEST_SEED)} if seeds else {}
    for key, values in space.items():
        if isinstance(values, Choices):
            found[key] = CategoricalDistribution(values.choices)
        else:
            found[key] = FloatDistribution(values.low, values.high, log=values.log)
    return found


def _pruner(options: SearchSettings) -> Any:
    from optuna import pruners

    if options.pruner == "median":
        return pruners.MedianPruner(n_startup_trials=options.startup_trials, n_warmup_steps=1)
    if options.pruner == "halving":
        return pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    return pruners.NopPruner()


def _storage(experiment: str, options: SearchSettings) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if options.storage is not None:
        return _database(options.storage)
    path = journal(experiment)
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path), _Lock(path)))


@contextmanager
def _whole_journal(experiment: str, options: SearchSettings) -> Iterator[None]:
    """Within the block a journal that is none ends in one line: it is read when it is first asked for something."""
    try:
        yield
    except (ValueError, KeyError, AttributeError) as error:  # json's errors among them
        if options.storage is not None:
            raise
        path, reason = journal(experiment), " ".join(str(error).split())
        raise UserError(f"{path}: is no journal of a search ({reason:.100}); move it away to begin anew") from None


def _database(url: str) -> BaseStorage:
    from optuna.exceptions import StorageInternalError
    from optuna.storages import RDBStorage
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    failure: Exception = UserError()
    for _ in range(ATTEMPTS):
        try:
            return RDBStorage(url)
        except ImportError:
            advice = "pip install '.[search]' in the repository, or name an installed driver"
            driver = make_url(url).drivername
            raise UserError(f"{FILE}: search.storage: the driver of {driver} is not installed; {advice}") from None
        except (ArgumentError, SQLAlchemyError, StorageInternalError, RuntimeError) as error:
            failure = error.__cause__ if isinstance(error.__cause__, SQLAlchemyError) else error
    try:
        shown = repr(make_url(url).render_as_string(hide_password=True))
    except ArgumentError:
        shown = repr(url) if "@" not in url else "a URL"
    reason = " ".join(str(failure).split()) or type(failure).__name__
    raise UserError(
        f"{FILE}: search.storage: {shown} cannot be opened ({reason:.160}); expected a URL such as "
        "postgresql+psycopg://user@host/database, or null for a journal file"
    )


class _Lock:
    """Locks the journal file's writers; unlike Optuna's own it ends with its process, so that a kill stops nobody."""

    def __init__(self, path: Path) -> None:
        self._path, self._handle = path.with_name(f"{path.name}.writers"), -1

    def acquire(self) -> bool:
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(handle, fcntl.LOCK_EX)
        self._handle = handle
        return True

    def release(self) -> None:
        os.close(self._handle)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Without what Optuna says of features that it calls experimental."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
