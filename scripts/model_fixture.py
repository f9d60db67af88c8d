"""Writes tiny models as this version stores them, with what they predict, for tests/test_old_models.py.

Once per version that changes what a model folder holds:

    python scripts/model_fixture.py tests/data/models/0.1

The weights are random, from a seed. Folders that older versions wrote stay as they are: that they load is the test.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from equisynth import params
from equisynth.description import FORMAT, Description, write_description
from equisynth.files import atomic_folder
from equisynth.inference import translate_volume
from equisynth.methods.base import method_class
from equisynth.model import load_model, network_states, save_weights

EXPERIMENTS = {"ixi-eqsim_com_eqadv": (10, 8, 9), "coco-lr_noreg_aug": (36, 20, 3), "staining-pix2pix": (36, 20, 3)}
"""Which, and the shapes of their images: 3D, colours, and a baseline's network."""
TINY = {
    3: {"patch_size": [8, 8, 8], "training_stride": [4, 4, 4], "inference_stride": [4, 4, 4]},
    2: {"patch_size": [32, 32], "training_stride": [16, 16], "inference_stride": [16, 16]},
}
WIDTHS = {"i2i": [2, 4], "normalization_groups": 2, "generator_width": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="gets a folder for each experiment")
    folder = parser.parse_args().folder
    for experiment, shape in EXPERIMENTS.items():
        with atomic_folder(folder / experiment) as temporary:
            write(temporary, experiment, shape)


def write(folder: Path, experiment: str, shape: tuple[int, ...]) -> None:
    """One model with ``image.npy``, (*S) or (*S, C), and ``prediction.npy``, both float32."""
    settings = params.resolve(params.read(), experiment, "demo")
    fields = settings.model_dump() | TINY[settings.data.n_dims]
    if settings.features.i2i:
        fields["features"] = fields["features"] | {"i2i": WIDTHS["i2i"]}
        fields["normalization_groups"] = WIDTHS["normalization_groups"]
    else:
        fields["network"] = fields["network"] | {"generator_width": WIDTHS["generator_width"]}
    settings = type(settings).model_validate(fields)
    torch.manual_seed(0)
    network = method_class(settings.method).predictor(settings)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # large enough for every weight to show in the prediction
    save_weights(folder / "model.safetensors", network_states({"i2i": network}))
    write_description(
        folder, Description(format=FORMAT, settings=settings, preparation={}, best_epoch=1, selection=0.1)
    )
    intensity = settings.data.input
    image = np.random.RandomState(0).normal(intensity.mean, intensity.std, shape).astype(np.float32)
    model = load_model(folder, "cpu")
    np.save(folder / "image.npy", image)
    np.save(folder / "prediction.npy", translate_volume(model.predict, image, None, model.description))


if __name__ == "__main__":
    main()
