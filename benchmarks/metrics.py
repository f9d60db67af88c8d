"""Masked SSIM and NMI of one volume, against scikit-image's functions on the same arrays, in turn.

Prints one JSON line: medians in seconds, the median of the ratios, the largest difference of the values, and how far
the memory of our functions rose above what was held before. scikit-image knows no masks: the whole volume counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
from measure import peak_memory
from skimage.metrics import normalized_mutual_information, structural_similarity

from equisynth.evaluation.metrics import errors, normalised_mutual_information, ssim


def timed(work: Callable[[], float]) -> tuple[float, float]:
    """Seconds, and what came of it."""
    start = time.perf_counter()
    value = work()
    return time.perf_counter() - start, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(256, 256, 130))
    parser.add_argument("--pairs", type=int, default=5, help="runs of each function, in turn with the other")
    arguments = parser.parse_args()
    shape = tuple(arguments.shape)
    state = np.random.RandomState(0)
    label = np.asfortranarray(state.rand(*shape).astype(np.float32))  # as memory-mapped NIfTI files lie
    prediction = np.asfortranarray(label + 0.1 * state.randn(*shape).astype(np.float32))
    mask = np.asfortranarray(np.ones(shape, np.uint8))
    bins = max(int((label.size / 5) ** 0.5), 2)
    measures: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "ssim": (
            lambda: ssim(label, prediction, mask, mask, 1.0).mean,
            lambda: float(structural_similarity(label, prediction, win_size=7, data_range=1.0)),
        ),
        "nmi": (
            lambda: normalised_mutual_information(label, prediction, mask).mean,
            lambda: float(normalized_mutual_information(label, prediction, bins=bins)),
        ),
    }
    line: dict[str, object] = {"benchmark": "metrics", "shape": shape, "pairs": arguments.pairs}
    for name, (ours, theirs) in measures.items():
        ours()  # compiles
        memory = peak_memory(ours)
        runs = [(timed(ours), timed(theirs)) for _ in range(arguments.pairs)]
        line |= {
            f"{name}_seconds": round(statistics.median(own for (own, _), _ in runs), 4),
            f"{name}_skimage_seconds": round(statistics.median(other for _, (other, _) in runs), 4),
            f"{name}_ratio": round(statistics.median(other / own for (own, _), (other, _) in runs), 1),
            f"{name}_difference": max(abs(found - expected) for (_, found), (_, expected) in runs),
            f"{name}_memory_mib": memory,
        }
    seconds = [timed(lambda: errors(label, prediction, mask)[0].mean)[0] for _ in range(arguments.pairs)]
    print(json.dumps(line | {"errors_seconds": round(statistics.median(seconds), 4)}))


if __name__ == "__main__":
    main()
