"""Predictions against labels that were registered around random locations (spec: evaluation, cermep).

At each location the registered label counts with a Gaussian weight of the distance. Registrations depend on no model:
`register` finds them, all or one machine's part of them, and keeps them; `evaluate` then only reads them. Parts that
several machines found are merged by laying their files into one folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from equisynth.config import Count, Positive, Strict
from equisynth.datasets.prepared import PreparedDataset
from equisynth.datasets.randomness import named_random_state
from equisynth.errors import UserError
from equisynth.evaluation import by_case
from equisynth.evaluation.by_case import (
    WHOLE,
    Part,
    Place,
    Prediction,
    Registrations,
    case_arrays,
    measure_cases,
    not_computed,
    place_name,
    register_all,
)
from equisynth.evaluation.local_registration import (
    FAILURE,
    LocalRegistration,
    Surroundings,
    found_transformation,
    squared_distance,
    surroundings,
    warped_label,
)
from equisynth.evaluation.weighted import WeightedMeasures, measure, valid_content
from equisynth.preprocessing.elastix import FloatArray, Mask, RegistrationFailed
from equisynth.work import Arrays, Remember, anew

NEEDED = ("label_native", "label_native_body_mask", "input_body_mask")
KeepErrors = Callable[[str, FloatArray], None]


class RegisteredSettings(Strict):
    """``evaluation.registered``. Defaults: as published.

    Attributes:
        locations: per case.
        seed: a case's locations follow from this and its name; more locations begin with the same ones.
        weight_std_mm: standard deviation of the Gaussian weight.
        symmetric_bodies: leave out also where the label alone shows body (published: only where the input alone does).
    """

    locations: Count = 20
    seed: int = 0
    weight_std_mm: Positive = 30.0
    symmetric_bodies: bool = False
    registration: LocalRegistration = LocalRegistration()  # of the label, around a location


# --- locations


def draw_locations(body: Mask, invalid: Sequence[Mask | None], count: int, state: np.random.RandomState) -> list[Place]:
    """Voxels of a body mask (*S) outside of all invalid regions, uniformly, without replacement; all if too few."""
    allowed = np.asarray(body) > 0
    for region in invalid:
        if region is not None:
            allowed &= np.asarray(region) == 0
    places = np.flatnonzero(allowed)
    chosen = state.permutation(places.size)[:count]
    return [tuple(int(i) for i in np.unravel_index(place, allowed.shape)) for place in places[chosen]]


def case_locations(dataset: PreparedDataset, case: str, settings: RegisteredSettings) -> list[Place]:
    """The locations of a case; they follow from the seed, its name and its masks."""
    body = dataset.region(case, "input_body")
    assert body is not None
    regions = [dataset.region(case, f"{role}_invalid_region") for role in ("input", "label")]
    return draw_locations(body, regions, settings.locations, named_random_state(settings.seed, "locations", case))


def lacking(dataset: PreparedDataset, split: str) -> str | None:
    """Why a split cannot be evaluated so; None: it can."""
    return by_case.lacking(dataset, split, _lacks)


def _lacks(dataset: PreparedDataset, case: str) -> str | None:
    missing = [role for role in NEEDED if not dataset.has(case, role)]
    return f"{case} has no {' and no '.join(missing)}" if missing else None


# --- registrations


def register(
    dataset: PreparedDataset,
    split: str,
    settings: RegisteredSettings,
    cache: Path,
    part: Part = WHOLE,
    jobs: int = 1,
) -> Registrations:
    """Finds the transformations of a split's locations that are not in the cache yet, in parallel processes.

    Args:
        cache: folder of the transformations.
        part: (k, n): of all locations in their order, the k-th of each n.
        jobs: processes (-1: one per core).

    Raises:
        UserError: there is no such part, or the split has no such labels.
    """
    reason = lacking(dataset, split)
    if reason is not None:
        raise UserError(f"{dataset.folder}: {reason}; nothing can be registered around locations")
    find, locations = partial(_found, dataset, settings, cache), partial(case_locations, dataset, settings=settings)
    return register_all(find, dataset, split, locations, part, jobs)


def _found(
    dataset: PreparedDataset, settings: RegisteredSettings, cache: Path, case: str, location: Place
) -> tuple[Surroundings, Arrays]:
    """What lies around a location, and the transformation there.

    Raises:
        RegistrationFailed: it failed, now or before.
    """
    around, air = surroundings(dataset, case, location, settings.registration), dataset.info.label.background
    found = found_transformation(around, settings.registration, air, cache, place_name(case, location))
    if FAILURE in found:
        raise RegistrationFailed(str(found[FAILURE]))
    return around, found


# --- measures


def evaluate(
    dataset: PreparedDataset,
    split: str,
    prediction: Prediction,
    settings: RegisteredSettings,
    cache: Path,
    remember: Remember = anew,
    keep_errors: KeepErrors | None = None,
    jobs: int = 1,
) -> dict[str, Any]:
    """Measures a model's predictions per case and pooled over all locations of a split.

    Args:
        prediction: case -> (*S), raw units; it is sent to other processes.
        cache: folder of the transformations; those not there yet are found first.
        remember: may know a case, ``registered/<split>/<case>``, from an interrupted run; sent likewise.
        keep_errors: takes each case and its error volume (*S): the sum over locations of weighted absolute errors.
        jobs: processes (-1: one per core).

    Returns:
        ``{"split", "locations", "failures": {location: reason}, "cases": {case: {mae, mse, me, psnr, ssim, locations}},
        "pooled": {mae, mse, me, psnr, ssim}}``; without a label on its own grid what `not_computed` gives.
    """
    instead = not_computed(dataset, split, _lacks)
    if instead is not None:
        return instead
    register(dataset, split, settings, cache, jobs=jobs)

    def keep(case: str, arrays: Arrays) -> None:
        if keep_errors is not None:
            keep_errors(case, arrays["errors"])

    measure = partial(measure_case, dataset, settings=settings, cache=cache)
    return measure_cases(
        "registered", "locations", dataset, split, prediction, measure, WeightedMeasures, remember, jobs, keep
    )


def measure_case(
    dataset: PreparedDataset, case: str, prediction: npt.NDArray[Any], settings: RegisteredSettings, cache: Path
) -> Arrays:
    """All locations of a case, one after the other.

    Args:
        prediction: (*S), raw units.

    Returns:
        `case_arrays` of `WeightedMeasures`, and ``errors`` (*S) float32.
    """
    affine, label = dataset.affine(case), dataset.info.label
    body, evaluation = dataset.region(case, "input_body"), dataset.mask(case, "evaluation")
    assert body is not None
    total, failures, count = WeightedMeasures(), [], 0
    errors = np.zeros(dataset.shape(case), np.float64)
    for location in case_locations(dataset, case, settings):
        try:
            around, transformation = _found(dataset, settings, cache, case, location)
            registered = warped_label(around, transformation, label.background)
        except RegistrationFailed as error:
            failures.append((place_name(case, location), str(error)))
            continue
        box = around.box
        comparable = valid_content(np.asarray(body[box]), registered, settings.symmetric_bodies)
        weights = np.exp(-squared_distance(affine, location, box) / (2 * settings.weight_std_mm**2))
        weights *= (around.ball > 0) & (comparable > 0)
        if evaluation is not None:
            weights *= np.asarray(evaluation[box]) > 0
        found, absolute = measure(
            registered.values, np.asarray(prediction[box]), comparable, weights, label.signal_range
        )
        total += found
        errors[box] += absolute
        count += 1
    return case_arrays(total, count, failures) | {"errors": errors.astype(np.float32)}
