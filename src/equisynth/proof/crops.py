"""Photographs that libraries ship -> a prepared dataset of random crops, ``data/proof/photographs``.

Nothing is downloaded. Pictures are halved by Pillow; splits share no picture.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from equisynth.config import Data
from equisynth.datasets.photographs import Photograph
from equisynth.datasets.photographs import read as read_photograph
from equisynth.datasets.prepared import DatasetInfo, write_case, write_info
from equisynth.datasets.randomness import named_random_state
from equisynth.datasets.splits import SPLITS
from equisynth.errors import UserError
from equisynth.files import atomic_folder
from equisynth.proof.protocol import Photographs

HALF = 2
IN_SKLEARN = ("china.jpg", "flower.jpg")
"""The two that scikit-learn ships; the others are scikit-image's."""

Picture = npt.NDArray[np.uint8]


def write_dataset(settings: Photographs, data: Data, name: str, folder: Path) -> None:
    """Writes the prepared dataset, whole or not at all; its bytes depend on the settings and the pictures alone.

    Raises:
        UserError: a picture is not shipped by the installed libraries, or is smaller than a crop.
    """
    digest = hashlib.sha256()
    splits: dict[str, tuple[str, ...]] = {}
    with atomic_folder(folder) as temporary:
        for split in SPLITS:
            cases = crops(settings, split)
            for case, crop in cases.items():
                write_case(temporary, case, {"input": crop}, np.eye(4), n_dims=2)
                digest.update(case.encode() + crop.tobytes())
            splits[split] = tuple(cases)
        preparation = {"kind": "coco", "pairs": "made from the input", "seed": settings.seed}
        preparation["crops_sha256"] = digest.hexdigest()  # dataset.json thus tells one set of crops from another
        info = DatasetInfo(
            **data.model_dump(), name=name, stored=("input",), preparation=preparation, splits=splits
        )  # fmt: skip
        write_info(temporary, info)


def crops(settings: Photographs, split: str) -> dict[str, Picture]:
    """Case name -> crop (side, side, 3): the split's pictures in turn, each time at a random place."""
    names = settings.pictures[split]  # type: ignore[index]
    count = settings.crops[split]  # type: ignore[index]
    halves = {name: halved(name) for name in names}
    result = {}
    for index in range(count):
        name = names[index % len(names)]
        case = f"{split}-{index:03d}-{Path(name).stem}"
        result[case] = random_crop(halves[name], settings.crop, named_random_state(settings.seed, "crop", case), name)
    return result


def random_crop(picture: Picture, side: int, random_state: np.random.RandomState, name: str) -> Picture:
    """A square of a picture (*S, 3), all places equally likely."""
    room = [size - side for size in picture.shape[:2]]
    if min(room) < 0:
        found = f"{picture.shape[0]} x {picture.shape[1]} at half size"
        raise UserError(f"{name}: is {found}, smaller than a crop of {side}; leave it out or lower photographs.crop")
    top, left = (int(random_state.randint(free + 1)) for free in room)
    return np.ascontiguousarray(picture[top : top + side, left : left + side])


def halved(name: str) -> Picture:
    """A shipped colour picture at half size, (*S, 3), by Pillow's bicubic filter, which widens to twice the pixels.

    Means of 2 x 2 pixels instead leave more noise, and every network ends lower with them.
    """
    package = "sklearn/datasets/images" if name in IN_SKLEARN else "skimage/data"
    picture = read_photograph(Photograph(name, package, "", False, "", "", ""))
    height, width = (size // HALF for size in picture.shape[:2])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC))
