"""The stage `predict` on whole slides: memory that does not grow with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from equisynth.config import Settings
from equisynth.datasets.prepared import DatasetInfo, write_info
from equisynth.description import FORMAT, Description, write_description
from equisynth.methods.base import build_method
from equisynth.model import WEIGHTS, network_states, save_weights
from equisynth.params import read, resolve

PARAMS = Path(__file__).parents[2] / "params.yaml"
SIDES = (4096, 8192)

_CHILD = """
import sys, threading
from pathlib import Path
from equisynth.stages import predict

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))

peak, done = [0], threading.Event()

def watch():
    while not done.wait(0.005):
        peak[0] = max(peak[0], anonymous())

threading.Thread(target=watch, daemon=True).start()
predict.run(*map(Path, sys.argv[1:4]), splits=("test",), device="cpu", work=Path(sys.argv[4]))
done.set()
print(peak[0])
"""


def settings() -> Settings:
    base = resolve(read(PARAMS), "staining-noreg", "demo").model_dump()
    return Settings.model_validate({
        **base, "patch_size": (256, 256), "inference_stride": (256, 256), "normalization_groups": 2,
        "features": {"i2i": (4, 4)},
    })  # fmt: skip


def slide(path: Path, side: int) -> None:
    """An uncompressed slide that is written, and read, behind a memory map."""
    picture = tifffile.memmap(path, shape=(side, side, 3), dtype=np.uint8, photometric="rgb", metadata=None)
    band = np.random.RandomState(0).randint(1, 256, (256, side, 3)).astype(np.uint8)
    for first in range(0, side, 256):
        picture[first : first + 256] = band


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_peak_of_anonymous_memory(tmp_path: Path) -> None:
    if not Path("/proc/self/status").is_file():
        pytest.skip("needs Linux's /proc")
    chosen = settings()
    save_weights(tmp_path / "model" / WEIGHTS, network_states(build_method(chosen).networks))
    write_description(
        tmp_path / "model", Description(format=FORMAT, settings=chosen, preparation={}, best_epoch=1, selection=0.5)
    )
    peaks = []
    for side in SIDES:
        prepared = tmp_path / str(side)
        splits = {"train": ("a",), "validate": ("b",), "test": ("c",)}
        for cases in splits.values():
            folder = prepared / "cases" / cases[0]
            folder.mkdir(parents=True)
            slide(folder / "input.tif", side)
            (folder / "label.tif").symlink_to("input.tif")
        info = {**chosen.data.model_dump(), "name": "slides", "splits": splits}
        write_info(prepared, DatasetInfo.model_validate(info))
        out = tmp_path / f"out{side}"
        command = [sys.executable, "-c", _CHILD, str(tmp_path / "model"), str(prepared), str(out), str(tmp_path / "w")]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
        written = tifffile.memmap(out / "test" / "c.tif", mode="r")
        assert written.shape == (side, side, 3)
        assert written[-1].any()
    print(f"peak anonymous memory at {SIDES}: {[round(peak / 2**20) for peak in peaks]} MiB")
    assert peaks[1] - peaks[0] < 200e6
    assert max(peaks) < 2 * 2**30
