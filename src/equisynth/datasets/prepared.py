"""The prepared layout: what every dataset becomes, and all that training, inference and evaluation know of it.

```
<folder>/dataset.json                  `DatasetInfo`
<folder>/cases/<case>/<role>.nii       uncompressed NIfTI, read through a memory map
```

Image roles (float32 or uint8): ``input``, ``label``, ``label_aligned``, ``label_registered``. Masks (uint8):
``<image role>_mask`` and ``evaluation_mask``; an absent mask means valid everywhere. Known deformations (float32,
vector NIfTI, displacement in voxels): ``deformation``, ``inverse_deformation``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError, field_validator

from equisynth.config import Data, Strict
from equisynth.errors import UserError
from equisynth.files import atomic_folder, read_json, write_json

SPLITS = ("train", "validate", "test")
DEFORMATIONS = ("deformation", "inverse_deformation")
_CASE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

Affine = npt.NDArray[np.float64]


class Skipped(Strict):
    """A raw case that could not be prepared, and why."""

    case: str
    reason: str


class DatasetInfo(Data):
    """``dataset.json``: what the images are (`Data`), how they were made, and which case is for what."""

    format: Literal[1] = 1
    name: str
    preparation: dict[str, Any] = Field(default_factory=dict)
    splits: dict[str, tuple[str, ...]]
    skipped: tuple[Skipped, ...] = ()

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

    Pickles to its folder and description alone, so that a worker process costs next to nothing.
    """

    def __init__(self, folder: Path, info: DatasetInfo) -> None:
        self.folder, self.info = folder, info
        self._images: dict[tuple[str, str], npt.NDArray[Any]] = {}

    @classmethod
    def open(cls, folder: Path | str) -> PreparedDataset:
        """Reads ``dataset.json`` and checks that each case has its input and label.

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
                for role in ("input", "label"):
                    if not dataset.has(case, role):
                        raise UserError(f"{dataset._path(case, role)}: not found; prepare dataset '{info.name}' again")
        return dataset

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_images": {}}

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

    def has(self, case: str, role: str) -> bool:
        """Whether the case holds this file (an image, ``<role>_mask`` or a deformation)."""
        return self._path(case, role).is_file()

    def shape(self, case: str) -> tuple[int, ...]:
        """Spatial shape of the case's input."""
        return tuple(self._nifti(case, "input").shape[: self.info.n_dims])

    def image(self, case: str, role: str) -> npt.NDArray[Any]:
        """Values on disk, (*S) or (*S, C), read-only; nothing is read before it is indexed.

        Raises:
            UserError: no such file, not NIfTI, another shape than its input's.
        """
        stored = self._nifti(case, role)
        return stored.reshape(stored.shape[: self.info.n_dims] + stored.shape[4:], order="A")

    def mask(self, case: str, role: str) -> npt.NDArray[np.uint8] | None:
        """The mask of an image role or ``evaluation``, (*S) of 0 and 1; None: valid everywhere."""
        name = f"{role}_mask"
        return self.image(case, name) if self.has(case, name) else None

    def deformation(self, case: str, inverse: bool = False) -> npt.NDArray[np.float32]:
        """The known displacement field (n, *S) in voxels that made ``label`` from ``label_aligned``, or its inverse."""
        stored = self._nifti(case, DEFORMATIONS[inverse])
        return np.moveaxis(stored.reshape(stored.shape[: self.info.n_dims] + stored.shape[4:], order="A"), -1, 0)

    def affine(self, case: str) -> Affine:
        """Voxel index to mm, (4, 4)."""
        import nibabel

        self._nifti(case, "input")
        return np.asarray(nibabel.Nifti1Image.from_filename(self._path(case, "input")).affine, dtype=np.float64)

    def verify(self) -> None:
        """Reads every image of every case once.

        Raises:
            UserError: a value is not finite, a mask holds other values than 0 and 1, or a file is malformed.
        """
        for case in (case for split in SPLITS for case in self.info.splits[split]):
            for path in sorted((self.folder / "cases" / case).glob("*.nii")):
                _check_values(path, path.stem, self._nifti(case, path.stem))

    def _path(self, case: str, role: str) -> Path:
        return self.folder / "cases" / case / f"{role}.nii"

    def _nifti(self, case: str, role: str) -> npt.NDArray[Any]:
        """The stored array as NIfTI has it: (X, Y[, Z[, 1, C]])."""
        found = self._images.get((case, role))
        if found is not None:
            return found
        import nibabel

        path, n_dims = self._path(case, role), self.info.n_dims
        try:
            image = nibabel.Nifti1Image.from_filename(path, mmap="r")
            stored: npt.NDArray[Any] = np.asanyarray(image.dataobj).view(np.ndarray)
        except FileNotFoundError:
            raise UserError(f"{path}: not found; prepare dataset '{self.info.name}' again") from None
        except Exception as error:  # damaged headers raise many kinds
            raise UserError(f"{path}: cannot be read as NIfTI ({error}); prepare the dataset again") from None
        if stored.dtype not in (np.float32, np.uint8):
            raise UserError(f"{path}: holds {stored.dtype}, expected float32 or uint8; prepare the dataset again")
        spatial_shape, rest = stored.shape[:n_dims], stored.shape[n_dims:]
        channels = stored.shape[4] if stored.ndim == 5 else 1
        wanted = self._channels(role)
        if len(spatial_shape) < n_dims or np.prod(rest, dtype=int) != channels or channels != wanted:
            raise UserError(
                f"{path}: shape {stored.shape}, expected {n_dims} axes and {wanted} channels; prepare the dataset again"
            )
        if role != "input" and spatial_shape != self.shape(case):
            raise UserError(f"{path}: shape {spatial_shape}, expected the input's {self.shape(case)}; prepare it again")
        self._images[case, role] = stored
        return stored

    def _channels(self, role: str) -> int:
        if role in DEFORMATIONS:
            return self.info.n_dims
        if role.endswith("_mask"):
            return 1
        return self.info.input.channels if role == "input" else self.info.label.channels


def write_case(
    folder: Path | str, case: str, arrays: Mapping[str, npt.NDArray[Any]], affine: Affine, n_dims: int = 3
) -> None:
    """Writes one case, whole or not at all.

    Args:
        folder: of the prepared dataset.
        case: its name, also the name of its folder.
        arrays: role -> values; images (*S) or (*S, C), masks (*S), deformations (n, *S).
        affine: voxel index to mm, (4, 4).
        n_dims: number of spatial axes.

    Raises:
        UserError: the name is no file name, or a value is not finite.
    """
    import nibabel

    if not _CASE_NAME.fullmatch(case):
        raise UserError(f"case {case!r}: expected a name of letters, digits, '.', '_' and '-'; rename it")
    with atomic_folder(Path(folder) / "cases" / case) as temporary:
        for role, values in arrays.items():
            values = np.asarray(values)
            if role.endswith("_mask"):
                values = values.astype(np.uint8)
            elif values.dtype != np.uint8:
                values = values.astype(np.float32)
            if role in DEFORMATIONS:
                values = np.moveaxis(values, 0, -1)
            _check_values(Path(folder) / "cases" / case / f"{role}.nii", role, values)
            if values.ndim == n_dims + 1:  # NIfTI keeps components in the fifth axis
                values = values.reshape(values.shape[:n_dims] + (1,) * (4 - n_dims) + values.shape[n_dims:])
            image = nibabel.Nifti1Image(values, affine)
            image.header.set_xyzt_units("mm")
            if role in DEFORMATIONS:
                image.header.set_intent("vector", name="displacement in voxels"[:15])
            nibabel.save(image, temporary / f"{role}.nii")


def write_info(folder: Path | str, info: DatasetInfo) -> None:
    """Writes ``dataset.json``."""
    write_json(Path(folder) / "dataset.json", info.model_dump(mode="json"))


def _check_values(path: Path, role: str, values: npt.NDArray[Any]) -> None:
    if values.dtype == np.float32 and not np.isfinite(values).all():
        raise UserError(f"{path}: holds values that are not finite (NaN or infinity); check the raw scan of this case")
    if role.endswith("_mask") and values.size and values.max() > 1:
        raise UserError(f"{path}: holds values up to {values.max()}, expected a mask of 0 and 1")
