"""One 3D training pair: windows of six memory-mapped 256 x 256 x 130 volumes, random transformation and noise."""

from __future__ import annotations

import tempfile
from itertools import cycle
from pathlib import Path

import numpy as np
from measure import report

from equisynth.datasets.patches import TrainingPatches
from equisynth.datasets.prepared import DatasetInfo, PreparedDataset, write_case, write_info
from equisynth.params import read, resolve

PARAMS = Path(__file__).parents[1] / "params.yaml"

if __name__ == "__main__":
    shape, count = (256, 256, 130), 32
    settings = resolve(read(PARAMS), "ixi-eqsim_com_eqadv", "paper")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = np.random.RandomState(0).rand(*shape).astype(np.float32)
        mask = np.ones(shape, np.uint8)
        mask[:8] = 0
        arrays = {"input": values, "label": values, "input_mask": mask, "label_mask": mask}
        splits = {"train": ("a",), "validate": ("b",), "test": ("c",)}
        for case in "abc":
            write_case(folder, case, arrays, np.eye(4))
        info = {**settings.data.model_dump(), "name": "volumes", "splits": splits}
        write_info(folder, DatasetInfo.model_validate(info))
        patches = TrainingPatches(PreparedDataset.open(folder), settings, "train", 0)
        indices = cycle(range(len(patches)))

        def work() -> None:
            for _ in range(count):
                patches[next(indices)]

        report("training_patch", work, shape=shape, patch=settings.patch_size, patches=count)
