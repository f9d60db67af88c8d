"""A whole 96 x 96 x 64 volume from 32³ tiles at stride 16, features 8-16-32, batch 4."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from measure import report
from torch import Tensor

from equisynth.inference import translate_volume
from equisynth.networks.unet import UNet
from equisynth.params import read, resolve

PARAMS = Path(__file__).parents[1] / "params.yaml"

if __name__ == "__main__":
    shape, patch, stride, features = (96, 96, 64), (32, 32, 32), (16, 16, 16), (8, 16, 32)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    settings = resolve(read(PARAMS), "ixi-noreg").model_copy(
        update={"patch_size": patch, "inference_stride": stride, "fusing_mask_smoothing": 2.0}
    )
    description = SimpleNamespace(settings=settings)
    torch.manual_seed(0)
    network = UNet(3, 1, 1, features, 8, "leaky_relu").to(device).eval()
    image = np.random.RandomState(0).rand(*shape).astype(np.float32)

    def predict(values: Tensor, mask: Tensor) -> Tensor:
        return network(values.to(device)).cpu()

    def work() -> None:
        translate_volume(predict, image, None, description, batch_size=4)

    report("inference_volume", work, repeats=3, shape=shape, patch=patch, stride=stride, features=features)
