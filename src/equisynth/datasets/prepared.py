"""The prepared layout: what every dataset becomes, and all that training, inference and evaluation know of it.

```
<folder>/dataset.json                  `DatasetInfo`
<folder>/cases/<case>/<role>.nii       uncompressed NIfTI, or
<folder>/cases/<case>/<role>.tif       uncompressed TIFF (pictures); both are read through a memory map
```

Images (float32 or uint8), `IMAGES`. Valid masks (uint8, 0 and 1): ``<image>_mask`` and ``evaluation_mask``; where one
is absent the case's shared ``mask`` counts, and without that everything is valid. Regions (masks that say something
else than validity), `REGIONS`: ``<region>_mask``. Known deformations (float32, vectors in voxels): `DEFORMATIONS`.
All lie on the input's grid, but for ``label_native`` and its masks, which share a grid of their own.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, field_validator

from equisynth.config import Data, Strict
from equisynth.datasets.prepared_files import SUFFIXES, Affine, as_nifti, check_values, find, open_map, read_affine
from equisynth.datasets.roles import (
    DEFORMATIONS,
    EVALUATION,
    IMAGES,
    MASKS,
    NATIVE,
    REGIONS,
    ROLES,
    SHARED_MASK,
    grid_of,
    image_of,
)
from equisynth.datasets.splits import SPLITS
from equisynth.errors import UserError
from equisynth.files import atomic_folder, read_json, write_json

OPEN_MAPS = 256
"""Memory maps that a dataset holds on to: each keeps a file open, and a process may open about a thousand."""
_CASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Skipped(Strict):
    """A raw case that could not be prepared, and why."""

    case: str
    reason: str


class DatasetInfo(Data):
    """``dataset.json``: what the images are (`Data`), how they were made, and which case is for what.

    ``stored`` lists the images that every case has; others may be there.
    """

    format: Literal[1] = 1
    name: str
    stored: tuple[str, ...] = ("input", "label")
    preparation: dict[str, Any] = Field(default_factory=dict)
    splits: dict[str, tuple[str, ...]]
    skipped: tuple[Skipped, ...] = ()

    @field_validator("stored")
    @classmethod
    def _images(cls, stored: tuple[str, ...]) -> tuple[str, ...]:
        if "input" not in stored or not set(stored) <= set(IMAGES):
            raise ValueError(f"is {list(stored)}, expected 'input' and others of {', '.join(IMAGES)}")
        return stored

    @field_validator("splits")
    @classmethod
    def _complete(cls, splits: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        if set(splits) != set(SPLITS):
            raise ValueError(f"has {sorted(splits)}, expected {', '.join(SPLITS)}")
        seen: dict[str, str] = {}
        for split, cases in splits.items():
            if not cases:
                raise ValueError(f"split '{split}' is empty, expected at least one case")
            for case in cases:
                if not _CASE_NAME.fullmatch(case):
                    raise ValueError(f"case name {case!r} is no file name of letters, digits, '.', '_' and '-'")
                if case in seen:
                    raise ValueError(f"case '{case}' is in '{seen[case]}' and in '{split}', expected in one split once")
                seen[case] = split
        return splits

    @property
    def data(self) -> Data:
        """What the images are, without how they were made."""
        return Data.model_validate({key: getattr(self, key) for key in Data.model_fields})


class PreparedDataset:
    """Reads a prepared dataset by memory map; opens files when they are asked for.

    Keeps the `OPEN_MAPS` files that were asked for last open. An array that someone holds stays valid beyond that.
    Pickles to its folder and description alone, so that a worker process costs next to nothing.
    """

    def __init__(self, folder: Path, info: DatasetInfo) -> None:
        self.folder, self.info = folder, info
        self._images: OrderedDict[tuple[str, str], npt.NDArray[Any] | None] = OrderedDict()  # None: no such file

    @classmethod
    def open(cls, folder: Path | str) -> PreparedDataset:
        """Reads ``dataset.json`` and checks that each case has the images that it promises.

        Raises:
            UserError: something is missing or malformed.
        """
        folder = Path(folder)
        try:
            info = DatasetInfo.model_validate(read_json(folder / "dataset.json"))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            message = first["msg"].removeprefix("Value error, ")
            raise UserError(f"{folder / 'dataset.json'}: {key}: {message}; prepare the dataset again") from None
        dataset = cls(folder, info)
        for split in SPLITS:
            for case in info.splits[split]:
                for role in info.stored:
                    if not dataset.has(case, role):
                        raise dataset._not_found(case, role)
        return dataset

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_images": OrderedDict()}

    def require(self, data: Data, said_by: str) -> None:
        """Refuses images that are not what someone expects.

        Args:
            said_by: words before the expected value, e.g. "the model was trained on".

        Raises:
            UserError: naming the key and both values.
        """
        for key in ("n_dims", "voxel_size", "input", "label"):
            found, expected = getattr(self.info, key), getattr(data, key)
            if found != expected:
                raise UserError(
                    f"{self.folder}: {key} is {found}, but {said_by} {expected}; prepare and train again (dvc repro)"
                )

    def cases(self, split: str) -> tuple[str, ...]:
        """Case names of ``train``, ``validate`` or ``test``."""
        if split not in self.info.splits:
            raise UserError(f"split '{split}': unknown; the splits of '{self.info.name}' are {', '.join(SPLITS)}")
        return self.info.splits[split]

    def roles(self, case: str) -> tuple[str, ...]:
        """Names of the files of a case, without their suffix, sorted.

        Raises:
            UserError: one is no role, or stands there twice.
        """
        folder = self._folder(case)
        found = sorted(path.stem for path in folder.glob("*") if path.suffix in SUFFIXES)
        for role in found:
            if role not in ROLES:
                raise UserError(f"{find(folder, role)}: is no role of the prepared layout; remove it")
            if found.count(role) > 1:
                both = " and ".join(role + suffix for suffix in SUFFIXES)
                raise UserError(f"{folder}: holds both {both}; remove one, or prepare the dataset again")
        return tuple(found)

    def has(self, case: str, role: str) -> bool:
        """Whether the case has this image, deformation or ``<name>_mask`` (its own, or a share in ``mask``)."""
        return self._path(case, role) is not None

    def shape(self, case: str) -> tuple[int, ...]:
        """Spatial shape of the case's input."""
        return tuple(self._stored(case, "input").shape[: self.info.n_dims])

    def image(self, case: str, role: str) -> npt.NDArray[Any]:
        """Values on disk, (*S) or (*S, C), read-only; nothing is read before it is indexed.

        On the input's grid, but for ``label_native``.

        Raises:
            UserError: no such file, damaged, or another shape than its grid's.
        """
        return self._stored(case, role)

    def suffix(self, case: str) -> str:
        """Of the file that holds the input: .nii or .tif."""
        path = self._path(case, "input")
        if path is None:
            raise self._not_found(case, "input")
        return path.suffix

    def is_8_bit(self, case: str) -> bool:
        """Whether the images of a case are pictures of 8 bits, and their translations are too."""
        return self._stored(case, "input").dtype == np.uint8

    def mask(self, case: str, role: str) -> npt.NDArray[np.uint8] | None:
        """Where an image of `IMAGES` is valid, or ``evaluation`` counts, (*S) of 0 and 1; None: everywhere."""
        if role not in (*IMAGES, EVALUATION):
            raise ValueError(f"{role!r} has no valid mask, expected one of {', '.join((*IMAGES, EVALUATION))}")
        return self._stored_if_any(case, f"{role}_mask")

    def region(self, case: str, name: str) -> npt.NDArray[np.uint8] | None:
        """A mask of `REGIONS`, which says nothing of validity, (*S) of 0 and 1; None: the case has none."""
        if name not in REGIONS:
            raise ValueError(f"{name!r} is no region, expected one of {', '.join(REGIONS)}")
        return self._stored_if_any(case, f"{name}_mask")

    def deformation(self, case: str, inverse: bool = False) -> npt.NDArray[np.float32]:
        """The known displacement field (n, *S) in voxels that made ``label`` from ``label_aligned``, or its inverse."""
        return np.moveaxis(self._stored(case, DEFORMATIONS[inverse]), -1, 0)

    def affine(self, case: str) -> Affine:
        """Voxel index of the input's grid to mm, (4, 4); the identity for pictures kept as TIFF."""
        return self._affine(case, "input")

    def native_affine(self, case: str) -> Affine:
        """Voxel index of ``label_native`` to mm, (4, 4), the same world as the input's."""
        return self._affine(case, NATIVE)

    def verify(self) -> None:
        """Opens every file of every case and looks at all values that can be wrong, block by block.

        Raises:
            UserError: a value is not finite, a mask holds other values than 0 and 1, a file is malformed, no role of
                the layout, or there twice.
        """
        for case in (case for split in SPLITS for case in self.info.splits[split]):
            for role in self.roles(case):
                path = self._path(case, role)
                assert path is not None
                check_values(path, self._stored(case, role), role in MASKS)

    def _folder(self, case: str) -> Path:
        return self.folder / "cases" / case

    def _path(self, case: str, role: str) -> Path | None:
        """The file that serves a role: its own, or for a valid mask the shared one."""
        folder = self._folder(case)
        own, image = find(folder, role), image_of(role)
        if own is not None or image is None or grid_of(role) != "input":
            return own
        return find(folder, SHARED_MASK) if image == EVALUATION or find(folder, image) is not None else None

    def _not_found(self, case: str, role: str) -> UserError:
        path = self._folder(case) / f"{role}{SUFFIXES[0]}"
        return UserError(f"{path}: not found (nor as {SUFFIXES[1]}); prepare dataset '{self.info.name}' again")

    def _stored(self, case: str, role: str) -> npt.NDArray[Any]:
        """The array of a role, (*S) or (*S, C), with the components of a deformation last."""
        values = self._stored_if_any(case, role)
        if values is None:
            raise self._not_found(case, role)
        return values

    def _stored_if_any(self, case: str, role: str) -> npt.NDArray[Any] | None:
        """As `_stored`, None where there is no file."""
        key = case, role
        if key not in self._images:
            path = self._path(case, role)
            self._images[key] = None if path is None else self._open(path, case, role)
        self._images.move_to_end(key)
        while len(self._images) > OPEN_MAPS:
            self._images.popitem(last=False)
        return self._images[key]

    def _open(self, path: Path, case: str, role: str) -> npt.NDArray[Any]:
        n_dims, wanted, grid = self.info.n_dims, self._channels(role), grid_of(role)
        values = open_map(path, n_dims)
        shape, channels = values.shape[:n_dims], values.shape[n_dims] if values.ndim > n_dims else 1
        if channels != wanted:
            raise UserError(f"{path}: has {channels} channels, expected {wanted}; prepare the dataset again")
        if role in MASKS and values.dtype != np.uint8:
            raise UserError(f"{path}: holds {values.dtype}, expected a mask of uint8; prepare the dataset again")
        expected = shape if role == grid else self._stored(case, grid).shape[:n_dims]
        if shape != expected:
            raise UserError(f"{path}: shape {shape}, expected the {grid}'s {expected}; prepare it again")
        return values

    def _affine(self, case: str, role: str) -> Affine:
        path = self._path(case, role)
        if path is None:
            raise self._not_found(case, role)
        return read_affine(path)

    def _channels(self, role: str) -> int:
        if role in DEFORMATIONS:
            return self.info.n_dims
        if role in MASKS:
            return 1
        return self.info.input.channels if role == "input" else self.info.label.channels


def write_case(
    folder: Path | str,
    case: str,
    arrays: Mapping[str, npt.NDArray[Any]],
    affine: Affine,
    n_dims: int = 3,
    affines: Mapping[str, Affine] | None = None,
) -> None:
    """Writes one case as NIfTI, whole or not at all.

    Args:
        folder: of the prepared dataset.
        case: its name, also the name of its folder.
        arrays: role -> values; images (*S) or (*S, C), masks (*S), deformations (n, *S).
        affine: voxel index to mm, (4, 4).
        n_dims: number of spatial axes.
        affines: of the roles on a grid of their own (``label_native`` and its masks).

    Raises:
        UserError: the name is no file name, a value is not finite, or an image is too large for NIfTI.
    """
    import nibabel

    if not _CASE_NAME.fullmatch(case):
        raise UserError(f"case {case!r}: expected a name of letters, digits, '.', '_' and '-'; rename it")
    target = Path(folder) / "cases" / case
    with atomic_folder(target) as temporary:
        for role, values in arrays.items():
            values, path = np.asarray(values), target / f"{role}.nii"
            is_mask, is_vector = role in MASKS, role in DEFORMATIONS
            if is_mask:
                values = values.astype(np.uint8)
            elif values.dtype != np.uint8:
                values = values.astype(np.float32)
            check_values(path, values, is_mask)
            if is_vector:
                values = np.moveaxis(values, 0, -1)
            image = as_nifti(path, values, (affines or {}).get(role, affine), n_dims)
            if is_vector:
                image.header.set_intent("vector", name="displacement in voxels"[:15])
            nibabel.save(image, temporary / path.name)


def write_info(folder: Path | str, info: DatasetInfo) -> None:
    """Writes ``dataset.json``."""
    write_json(Path(folder) / "dataset.json", info.model_dump(mode="json"))
