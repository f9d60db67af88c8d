"""All measures of one case on a 256 x 256 x 130 volume: errors, masked SSIM, NMI."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from measure import report

from equisynth.evaluation.metrics import errors, normalised_mutual_information, ssim

if __name__ == "__main__":
    shape = (256, 256, 130)
    state = np.random.RandomState(0)
    label = np.asfortranarray(state.rand(*shape).astype(np.float32))  # as memory-mapped NIfTI files lie
    prediction = np.asfortranarray(label + 0.1 * state.randn(*shape).astype(np.float32))
    mask = np.asfortranarray(np.ones(shape, np.uint8))
    mask[:32] = mask[:, :32] = 0
    measures: dict[str, Callable[[], object]] = {
        "errors": lambda: errors(label, prediction, mask),
        "ssim": lambda: ssim(label, prediction, mask, mask, 1.0),
        "nmi": lambda: normalised_mutual_information(label, prediction, mask),
    }
    each = {}
    for name, work in measures.items():
        work()
        start = time.perf_counter()
        work()
        each[f"{name}_seconds"] = round(time.perf_counter() - start, 4)
    report("metrics", lambda: [work() for work in measures.values()], shape=shape, **each)
