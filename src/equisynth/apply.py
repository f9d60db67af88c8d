"""``equisynth predict``: a model by name or folder, applied to one file of a user."""

from __future__ import annotations

from pathlib import Path

from equisynth.errors import UserError
from equisynth.inference import predict_nifti
from equisynth.model import load_model
from equisynth.slides import predict_tiff

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
    formats = NIFTI if str(image).endswith(NIFTI) else TIFF
    for path, what in ((image, "input"), (output, "output")):
        if not str(path).endswith(formats):
            raise UserError(f"{path}: the {what}'s name must end with {' or '.join(formats)} (input and output alike)")
    if not image.is_file():
        raise UserError(f"{image}: no such file")
    if output.exists() and not force:
        raise UserError(f"{output}: exists already; choose another name or add --force")
    loaded = load_model(_folder(model), device)
    translate = predict_nifti if formats is NIFTI else predict_tiff
    translate(loaded, image, output, mask)
    print(output)


def _folder(model: str) -> Path:
    if model.startswith("models:/"):
        from equisynth.registry import pull

        return pull(model)
    folder = Path(model)
    if not folder.is_dir():
        raise UserError(f"{model}: no such folder; give models:/NAME@ALIAS, models:/NAME/VERSION or a model's folder")
    return folder
