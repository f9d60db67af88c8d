"""`equisynth predict` of a raw 256 x 256 x 130 scan with a network of the published size, until eight tiles are done.

Started as a user starts it. Prints the seconds from the start of the process to the first tile, the peak memory of the
process after the eighth, the seconds per tile, and the line with the time left that stood in the log.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel
import numpy as np

from equisynth.datasets.ixi import IxiPreparation, constants
from equisynth.datasets.raw_scan import edge_shares
from equisynth.description import FORMAT, Description, write_description
from equisynth.methods.base import method_class
from equisynth.model import network_states, save_weights
from equisynth.params import read, resolve

PARAMS = Path(__file__).parents[1] / "params.yaml"
SHAPE, VOXEL_SIZE, TILES = (256, 256, 130), (0.9375, 0.9375, 1.25), 8
FIRST_TILE_SECONDS, PEAK_GIB = 12, 4
WATCHED = """
import json, os, sys, time
from pathlib import Path
from equisynth import cli, inference, remaining

remaining.SECONDS = 5.0
tiles, seen, processor, whole = int(os.environ["TILES"]), [], [], inference._predict_tiles

def watched(predict, waiting, *more):
    seen.append(time.time())
    processor.append(time.process_time())
    found = whole(predict, waiting, *more)
    seen[len(seen):] = [time.time()] * (len(waiting) - 1)
    if len(seen) >= tiles:
        status = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20
        begun = float(os.environ["BEGUN"])
        per_tile = (time.time() - seen[0]) / tiles
        first = {"first": seen[0] - begun, "processor": processor[0]}
        print(json.dumps({**first, "peak": peak, "per_tile": per_tile}), flush=True)
        raise KeyboardInterrupt
    return found

inference._predict_tiles = watched
cli.main(sys.argv[1:])
"""


def write_model(folder: Path, body: np.ndarray) -> None:
    """Random weights; the constants of a training set like the scan itself."""
    settings = resolve(read(PARAMS), "ixi-eqsim_com_eqadv", "paper")
    facts = {"orientation": "LPS", "body_quantiles": [0.2, 0.5, 0.9, 1.1, 1.4], "edge_shares": edge_shares(body)}
    network = method_class(settings.method).predictor(settings)
    save_weights(folder / "model.safetensors", network_states({"i2i": network}))
    preparation = constants(IxiPreparation(), VOXEL_SIZE, [facts])
    write_description(
        folder, Description(format=FORMAT, settings=settings, preparation=preparation, best_epoch=1, selection=0)
    )


def head() -> tuple[np.ndarray, np.ndarray]:
    """An ellipsoid of smoothly changing intensity, and where it is."""
    axes = np.meshgrid(*(np.linspace(-1.15, 1.15, size, dtype=np.float32) for size in SHAPE), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    values = (radius < 1) * (300 + 500 * np.abs(np.sin(9 * radius)) + 40 * axes[2])
    noise = np.random.RandomState(0).rand(*SHAPE).astype(np.float32)
    return (values + 8 * noise).astype(np.int16), (radius < 1).astype(np.uint8)


def main() -> int:
    values, body = head()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", body)
        nibabel.save(nibabel.Nifti1Image(values, np.diag([*VOXEL_SIZE, 1.0])), folder / "T2.nii.gz")
        words = [sys.executable, "-c", WATCHED, "predict", str(folder / "T2.nii.gz"), "--model", str(folder / "model")]
        words += ["--output", str(folder / "PD.nii.gz"), *sys.argv[1:]]
        environment = {**os.environ, "TILES": str(TILES), "BEGUN": repr(time.time())}
        done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
        assert not (folder / "PD.nii.gz").exists()
    if not done.stdout.startswith("{"):
        print(done.stderr, file=sys.stderr)
        return 1
    found = json.loads(done.stdout.splitlines()[0])
    said = [line for line in done.stderr.splitlines() if line.endswith(" left")]
    line = {
        "benchmark": "predict_published",
        "first_tile_seconds": round(found["first"], 2),
        "processor_seconds_until_then": round(found["processor"], 2),
        "first_tile_limit": FIRST_TILE_SECONDS,
        "peak_gib": round(found["peak"], 2),
        "peak_limit": PEAK_GIB,
        "seconds_per_tile": round(found["per_tile"], 2),
        "said": said[-1:],
        "processors": os.cpu_count(),
    }
    print(json.dumps(line))
    return int(found["first"] > FIRST_TILE_SECONDS or found["peak"] > PEAK_GIB or not said)


if __name__ == "__main__":
    sys.exit(main())
