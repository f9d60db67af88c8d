"""``equisynth predict``: a model by name or folder, applied to one file of a user."""

from __future__ import annotations

import sys
from pathlib import Path

from equisynth.config import Data
from equisynth.errors import UserError
from equisynth.inference import predict_nifti
from equisynth.model import DESCRIPTION, load_model
from equisynth.slides import predict_tiff

FARTHEST = 3.0  # ratio of voxel sizes beyond which a model says nothing
NIFTI, TIFF = (".nii", ".nii.gz"), (".tif", ".tiff")


def predict_file(
    image: Path, model: str, output: Path, mask: Path | None = None, device: str | None = None, force: bool = False
) -> None:
    """Translates one prepared image; the output has its geometry.

    Args:
        model: a registered model (``models:/ixi@champion``) or a folder with model.safetensors and model.json.

    Raises:
        UserError: wrong names, existing output without ``force``, unreadable or unfitting files.
    """
    if not image.is_file():
        raise UserError(f"{image}: no such file")
    if not str(image).endswith(NIFTI + TIFF):
        raise UserError(f"{image}: the input's name must end with {', '.join(NIFTI)} (volumes) or {', '.join(TIFF)}")
    formats = NIFTI if str(image).endswith(NIFTI) else TIFF
    if not str(output).endswith(formats):
        raise UserError(f"{output}: the output's name must end with {' or '.join(formats)}, as the input's does")
    if output.exists() and not force:
        raise UserError(f"{output}: exists already; choose another name or add --force")
    _check_device(device)
    loaded = load_model(_folder(model), device)
    if formats is NIFTI:
        _check_voxel_size(image, loaded.description.settings.data)
    translate = predict_nifti if formats is NIFTI else predict_tiff
    translate(loaded, image, output, mask)
    print(output)


def _check_device(device: str | None) -> None:
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--device {device}: cannot be used here ({reason:.120}); leave it out, or give cpu") from None


def _check_voxel_size(image: Path, data: Data) -> None:
    """The model knows images of one voxel size: another one is told, one far away refused."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        header = nibabel.load(image).header
    except (ImageFileError, OSError, EOFError):
        return  # the reader of the image says it better
    found = tuple(float(size) for size in header.get_zooms()[: data.n_dims])
    ratios = [one / other if other else 0.0 for one, other in zip(found, data.voxel_size, strict=False)]
    sizes = f"voxel size {', '.join(f'{size:.3g}' for size in found)}, the model was trained on {data.voxel_size}"
    if any(not 1 / FARTHEST <= ratio <= FARTHEST for ratio in ratios):
        raise UserError(f"{image}: {sizes}; prepare it as the training images were")
    if any(abs(ratio - 1) > 0.05 for ratio in ratios):
        print(f"equisynth: warning: {image}: {sizes}; prepare it as the training images were", file=sys.stderr)


def _folder(model: str) -> Path:
    if model.startswith("models:/"):
        from equisynth.registry import pull

        return pull(model)
    folder = Path(model)
    if not model or not (folder / DESCRIPTION).is_file():
        problem = f"holds no {DESCRIPTION}" if folder.is_dir() else "no such folder"
        raise UserError(
            f"--model '{model}': {problem}; give models:/NAME@ALIAS, models:/NAME/VERSION or a model's folder"
        )
    return folder
