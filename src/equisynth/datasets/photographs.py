"""Makes COCO's archive from crops of real photographs that two libraries ship inside of their packages.

Nothing is downloaded. No photograph serves two splits, so that what is tested was not trained on.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from equisynth.config import Strict
from equisynth.datasets.randomness import named_random_state
from equisynth.datasets.splits import SPLITS, CaseCounts
from equisynth.errors import UserError
from equisynth.files import atomic_path, write_json

FOLDER = "unlabeled2017"
QUALITY = 92  # of the JPEGs

Whole = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Photograph:
    """A photograph of a package, what it shows, and on what terms."""

    file: str  # in the package
    package: str  # and its folder there
    split: str
    grey: bool
    shows: str
    credit: str
    licence: str


_SKIMAGE, _SKLEARN = "skimage/data", "sklearn/datasets/images"
_FREE, _CC0, _CC_BY = "public domain", "CC0 1.0", "CC BY 2.0"
PHOTOGRAPHS = tuple(
    Photograph(*entry)
    for entry in (
        ("chelsea.png", _SKIMAGE, "train", False, "a cat", "Stefan van der Walt", _CC0),
        ("coffee.png", _SKIMAGE, "train", False, "a cup of coffee", "Rachel Michetti, Pikolo Espresso Bar", _CC0),
        ("hubble_deep_field.jpg", _SKIMAGE, "train", False, "galaxies", "NASA, ESA", _FREE),
        ("retina.jpg", _SKIMAGE, "train", False, "the back of an eye", "Mikael Häggström", _CC0),
        ("rocket.jpg", _SKIMAGE, "train", False, "the launch of a rocket", "SpaceX", _FREE),
        ("camera.png", _SKIMAGE, "train", True, "a photographer", "Lav Varshney", _CC0),
        ("grass.png", _SKIMAGE, "train", True, "grass", "linolafett (DeviantArt)", _CC0),
        ("flower.jpg", _SKLEARN, "validate", False, "a flower", "vultilion (Flickr 6056698931)", _CC_BY),
        ("brick.png", _SKIMAGE, "validate", True, "a brick wall", "CC0Textures", _CC0),
        ("china.jpg", _SKLEARN, "test", False, "a Chinese temple", "danielbuechele (Flickr 6061409035)", _CC_BY),
        ("astronaut.png", _SKIMAGE, "test", False, "an astronaut", "NASA", _FREE),
        ("gravel.png", _SKIMAGE, "test", True, "gravel", "CC0Textures", _CC0),
    )
)


class PhotographSource(Strict):
    """``sources.coco`` of kind ``phantom``."""

    kind: Literal["phantom"] = "phantom"
    seed: Whole = 0
    cases: CaseCounts = {"train": 24, "validate": 4, "test": 8}
    longer_side: Annotated[int, Field(ge=16)] = 640  # pixels; the other is 0.6 to 1 of it, as most of COCO's are
    grey_share: Share = 0.1  # of the pictures


def case_names(source: PhotographSource) -> dict[str, list[str]]:
    """Case names (12 digits) of each split."""
    splits: dict[str, list[str]] = {}
    index = 0
    for split in SPLITS:
        splits[split] = [f"{8 + 23 * i:012d}" for i in range(index, index + source.cases[split])]
        index += source.cases[split]
    return splits


def write_archive(source: PhotographSource, folder: Path, jobs: int = 1) -> Path:
    """Writes ``unlabeled2017.zip``, ``splits.json``, and ``photographs.json`` with each picture's origin and terms.

    The bytes depend on ``source`` and the version of the JPEG library, not on ``jobs``.
    """
    from joblib import Parallel, delayed

    folder.mkdir(parents=True, exist_ok=True)
    splits, path = case_names(source), folder / f"{FOLDER}.zip"
    cases = [(case, split) for split in SPLITS for case in splits[split]]
    origins: dict[str, dict[str, Any]] = {}
    made = Parallel(n_jobs=jobs, return_as="generator")(delayed(make_case)(source, *case) for case in cases)
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:  # JPEGs do not get smaller
        for (case, _), (content, photograph) in zip(cases, made, strict=True):
            member = zipfile.ZipInfo(f"{FOLDER}/{case}.jpg")  # the date of nothing: same bytes everywhere
            member.external_attr = 0o644 << 16
            archive.writestr(member, content)
            origins[case] = {key: getattr(photograph, key) for key in ("file", "package", "credit", "licence")}
    write_json(folder / "splits.json", splits)
    write_json(folder / "photographs.json", origins)
    return path


def make_case(source: PhotographSource, case: str, split: str) -> tuple[bytes, Photograph]:
    """One crop as the bytes of a JPEG, and what it was cut from; depends on (source, case, split) only."""
    from PIL import Image

    state = named_random_state(source.seed, "photograph", case)
    grey = bool(state.uniform() < source.grey_share)
    choice = [photograph for photograph in PHOTOGRAPHS if (photograph.split, photograph.grey) == (split, grey)]
    photograph = choice[state.randint(len(choice))]
    whole = Image.fromarray(read(photograph))

    sides = source.longer_side, round(source.longer_side * state.uniform(0.6, 1.0))
    width, height = sides if state.uniform() < 0.7 else sides[::-1]
    share = state.uniform(0.4, 1.0) * min(whole.width / width, whole.height / height)  # of the largest crop that fits
    left = state.uniform(0, whole.width - share * width)
    top = state.uniform(0, whole.height - share * height)
    box = (left, top, left + share * width, top + share * height)
    crop = whole.resize((width, height), Image.Resampling.BICUBIC, box=box)
    if state.uniform() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    content = io.BytesIO()
    crop.save(content, "JPEG", quality=QUALITY)
    return content.getvalue(), photograph


def read(photograph: Photograph) -> Picture:
    """The whole photograph, (*S, 3) or grey (*S).

    Raises:
        UserError: the installed version of the package does not ship it.
    """
    from PIL import Image

    package, _, inner = photograph.package.partition("/")
    spec = find_spec(package)  # to import these packages takes seconds
    path = Path(spec.origin).parent / inner / photograph.file if spec and spec.origin else None
    if path is None or not path.is_file():
        library = {_SKIMAGE: "scikit-image", _SKLEARN: "scikit-learn"}[photograph.package]
        raise UserError(
            f"{photograph.package}/{photograph.file}: not found; install {library} in the version that "
            "requirements.lock names"
        )
    with Image.open(path) as image:
        return np.asarray(image.convert("L" if photograph.grey else "RGB"))
