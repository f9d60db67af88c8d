"""Random sequences of training patches: which case an item comes from, and where in it the patch lies.

Every function that draws takes a ``numpy.random.RandomState`` and makes a fixed sequence of calls on it, so that a
seed gives the same patches everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from equisynth.errors import UserError

MAXIMUM_TRIES = 1000


def draw_order(
    random_state: np.random.RandomState, patch_counts: Sequence[int], cluster_size: int | None = None
) -> np.ndarray:
    """The case index of every item of an epoch.

    The cases are permuted; within each cluster of ``cluster_size`` consecutive permuted cases (all, if None) every
    case stands as often as it has patches, shuffled. Small clusters keep few images in memory at a time.

    Returns:
        (sum of patch_counts,) int64.
    """
    permutation = random_state.permutation(len(patch_counts))
    counts = np.asarray(patch_counts, dtype=np.int64)
    step = cluster_size or max(len(permutation), 1)
    clusters = []
    for first in range(0, len(permutation), step):
        cases = permutation[first : first + step]
        cluster = np.repeat(cases, counts[cases])
        random_state.shuffle(cluster)
        clusters.append(cluster)
    return np.concatenate(clusters) if clusters else np.zeros(0, dtype=np.int64)


def draw_start(random_state: np.random.RandomState, shape: Sequence[int], patch_size: Sequence[int]) -> tuple[int, ...]:
    """First voxel of a uniformly drawn patch (one vector draw)."""
    return tuple(int(first) for first in random_state.randint(np.asarray(shape) - np.asarray(patch_size) + 1))


def find_patch(
    random_state: np.random.RandomState,
    shape: Sequence[int],
    patch_size: Sequence[int],
    valid_shares: Callable[[tuple[int, ...]], Sequence[float]],
    minimum_shares: Sequence[float],
    name: str,
    tries: int = MAXIMUM_TRIES,
) -> tuple[int, ...]:
    """Draws patches until their valid shares reach the minimum.

    Args:
        valid_shares: for a patch's first voxel, the valid share of each image of the pair.
        minimum_shares: what each of them has to reach.
        name: of the case, for the message.

    Raises:
        UserError: ``tries`` patches were drawn and none of them was valid enough.
    """
    best: tuple[float, ...] = ()
    for _ in range(tries):
        start = draw_start(random_state, shape, patch_size)
        shares = tuple(float(share) for share in valid_shares(start))
        if all(share >= minimum for share, minimum in zip(shares, minimum_shares, strict=True)):
            return start
        if not best or min(shares) > min(best):
            best = shares
    raise UserError(
        f"min_valid_ratio: no patch of {tries} drawn from case {name} is valid enough: found at best "
        f"{_percent(best)}, expected {_percent(minimum_shares)}; lower min_valid_ratio or patch_size, or leave the "
        "case out"
    )


def draw_noise(
    random_state: np.random.RandomState, shape: Sequence[int], std_range: Sequence[float] | None
) -> np.ndarray | None:
    """White noise whose standard deviation is drawn uniformly from a range, (*shape) float32; None without a range."""
    if std_range is None:
        return None
    std = random_state.uniform(std_range[0], std_range[1])
    return random_state.normal(0, std, tuple(shape)).astype(np.float32)


def _percent(shares: Sequence[float]) -> str:
    return " and ".join(f"{100 * share:.4g} %" for share in shares)
