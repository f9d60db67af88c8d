"""Fréchet inception distance (Heusel et al. 2017) between images that were predicted and real ones.

The network and its weights are pytorch-fid's, so that values are comparable with the literature. Without weights there
is no FID: the result says why, and no number stands in its place. Which images are compared, ``real_images.py`` knows.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import os
import sys
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from equisynth.errors import UserError
from equisynth.evaluation.frechet import Sample, Unavailable, compare
from equisynth.files import atomic_path, sha256
from equisynth.work import Arrays, Remember, anew

LOCAL_WEIGHTS = Path("weights/fid_inception.pth")
"""Looked for in the working directory (the repository)."""
FEATURES = 2048
TIMEOUT_S = 10

Stacks = Iterable[tuple[str, np.ndarray]]
"""Name of a cut and some of its images, (n, H, W) of grey or (n, H, W, 3) of colours, uint8; and so on."""

_libraries: list[Any] = []  # a schema lives as long as its library object


def slices(volume: np.ndarray, axis: int, background: float, signal_range: float) -> np.ndarray:
    """All slices of a volume across one axis as 8-bit grey: (value - background) / signal range * 255, clipped.

    Args:
        volume: (*S), three axes.

    Returns:
        (number of slices, H, W) uint8.
    """
    return as_8_bit(np.moveaxis(np.asarray(volume), axis, 0), background, signal_range)


def as_8_bit(values: np.ndarray, background: float, signal_range: float) -> np.ndarray:
    """(value - background) / signal range * 255, rounded and clipped, uint8; values are finite."""
    scaled = (np.asarray(values, dtype=np.float32) - np.float32(background)) * np.float32(255 / signal_range)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def whole(
    image: np.ndarray, n_dims: int, background: float, signal_range: float, axes: Sequence[int]
) -> Iterator[tuple[str, np.ndarray]]:
    """An image as its cuts, one after the other: ``axis0`` and so on, all slices; or ``images``, a picture alone.

    Args:
        image: (*S) or (*S, C).
        axes: across which volumes are cut.
    """
    if n_dims == 2:
        yield "images", as_8_bit(np.asarray(image)[None], background, signal_range)
        return
    for axis in axes:
        yield f"axis{axis}", slices(image, axis, background, signal_range)


def import_inception() -> Any:
    """pytorch-fid's module of the network, also where torchvision's compiled operators do not load.

    Without them torchvision stops at the missing schemas of two operators; declared here, its pure-Python parts (all
    that is needed) import. Where torchvision works nothing is declared.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)
        importlib.import_module("torchvision")
    return importlib.import_module("pytorch_fid.inception")


def find_weights(path: Path | str | None = None, download: bool = True) -> Path:
    """The file of the network's weights: the given one, else the repository's, else torch's cache, else a download.

    Raises:
        UserError: the given file is absent.
        Unavailable: there is none to be had.
    """
    if path is not None and Path(path) != LOCAL_WEIGHTS:
        if not Path(path).is_file():
            raise UserError(
                f"FID weights {path}: not found; expected pytorch-fid's Inception weights; "
                "mend the path or leave it out"
            )
        return Path(path)
    if LOCAL_WEIGHTS.is_file():
        return LOCAL_WEIGHTS
    url: str = import_inception().FID_WEIGHTS_URL
    name = url.rsplit("/", 1)[-1]
    cached = Path(torch.hub.get_dir()) / "checkpoints" / name
    if cached.is_file():
        return cached
    if not download:
        raise Unavailable(f"no weights: neither {LOCAL_WEIGHTS} nor {name} in torch's cache, and downloads are off")
    wanted = name.removesuffix(".pth").rsplit("-", 1)[-1]
    try:
        with atomic_path(cached) as temporary:
            digest = hashlib.sha256()
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, open(temporary, "wb") as file:
                while block := answer.read(2**20):
                    digest.update(block)
                    file.write(block)
            if not digest.hexdigest().startswith(wanted):
                raise OSError(f"its SHA-256 {digest.hexdigest()} does not begin with {wanted}")
    except (OSError, UserError) as error:
        reason = str(error).replace(os.linesep, " ")
        message = f"no weights: {LOCAL_WEIGHTS} is absent and {name} could not be downloaded ({reason})"
        raise Unavailable(message) from None
    return cached


def load_inception(weights: Path | str) -> nn.Module:
    """pytorch-fid's network up to its last pooling, with the weights of a file and without the network.

    Raises:
        UserError: the file holds other weights.
    """
    module = import_inception()

    def from_file(*_: Any, **__: Any) -> dict[str, Tensor]:
        state: dict[str, Tensor] = torch.load(weights, map_location="cpu", weights_only=True)
        return state

    original = module.load_state_dict_from_url  # the constructor loads by itself; hand it the file
    module.load_state_dict_from_url = from_file
    try:
        network: nn.Module = module.InceptionV3([module.InceptionV3.BLOCK_INDEX_BY_DIM[FEATURES]])
    except Exception as error:  # torch raises several kinds for a file that is no state
        reason = str(error).strip().splitlines()[0]
        message = f"FID weights {weights}: are not pytorch-fid's Inception weights ({reason}); replace the file"
        raise UserError(message) from None
    finally:
        module.load_state_dict_from_url = original
    return network.eval()


class Activations:
    """The network's activations of 8-bit images, each distinct image passed once (many slices are empty).

    What has been seen is known until `forget`. The last bits of an activation depend on the images that share its
    batch, and so on what is known already: who wants the same bits whatever came before forgets first.

    Args:
        network: see :func:`load_inception`.
        batch_size: images of one size per pass.
    """

    def __init__(self, network: nn.Module, batch_size: int = 32, device: str = "cpu") -> None:
        self.network = _fused(network).to(device)
        self.batch_size, self.device = batch_size, device
        self._known: dict[tuple[tuple[int, ...], bytes], np.ndarray] = {}

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """(N, H, W) grey or (N, H, W, 3) colours, uint8 -> (N, 2048) float32.

        Raises:
            Unavailable: the images have another number of channels.
        """
        if images.ndim == 4 and images.shape[-1] != 3:
            raise Unavailable(f"the network sees grey or three colours, the images have {images.shape[-1]} channels")
        keys = [(image.shape, hashlib.sha256(image.tobytes()).digest()) for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._known}
        names, pictures = list(new), list(new.values())
        for first in range(0, len(names), self.batch_size):
            found = self._forward(np.stack(pictures[first : first + self.batch_size]))
            self._known.update(zip(names[first : first + self.batch_size], found, strict=True))
        return np.stack([self._known[key] for key in keys])

    def forget(self) -> None:
        self._known.clear()

    def _forward(self, images: np.ndarray) -> np.ndarray:
        values = torch.from_numpy(images).to(self.device)
        values = values[:, None].expand(-1, 3, -1, -1) if values.ndim == 3 else values.permute(0, 3, 1, 2)
        with torch.no_grad():
            found: Tensor = self.network((values.float() / 255).contiguous(memory_format=torch.channels_last))[0]
        return found.flatten(1).cpu().numpy()


def _fused(network: nn.Module) -> nn.Module:
    """A copy that computes the same about twice as fast on a CPU.

    Batch normalisations become part of the convolutions before them; weights lie channels-last.
    """
    result: Any = copy.deepcopy(network)
    for module in result.modules():
        if isinstance(getattr(module, "conv", None), nn.Conv2d) and isinstance(module.bn, nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = nn.Identity()
    fused: nn.Module = result.to(memory_format=torch.channels_last)
    return fused


class Network:
    """The network with the weights that :func:`find_weights` finds, and how samples pass through it.

    Args:
        weights: see :func:`find_weights`, as ``download``.
        batch_size, device: see `Activations`.

    Raises:
        UserError, Unavailable: see :func:`find_weights`, :func:`load_inception`.
    """

    def __init__(
        self, weights: Path | str | None = None, download: bool = True, batch_size: int = 32, device: str = "cpu"
    ) -> None:
        path = find_weights(weights, download)
        self.sha256 = sha256(path)
        self._activations = Activations(load_inception(path), batch_size, device)

    def sample(self, cases: Iterable[tuple[str, Stacks]], remember: Remember = anew) -> dict[str, Arrays]:
        """Name of a cut -> `Sample.to_arrays` of all its images.

        Args:
            cases: name of each and its images, (name of the cut, stack) by stack.
            remember: may know the activations of a case, named by the weights and its name.

        Raises:
            Unavailable: there are fewer than two images.
        """
        samples: dict[str, Sample] = {}
        for case, stacks in cases:
            found = remember(f"fid-{self.sha256[:12]}/{case}", partial(self._activate, stacks))
            for name, activations in found.items():
                samples.setdefault(name, Sample()).add(activations)
        if not samples:
            raise Unavailable("there are no images to compare")
        return {name: sample.to_arrays() for name, sample in samples.items()}

    def _activate(self, stacks: Stacks) -> Arrays:
        self._activations.forget()
        found: dict[str, list[np.ndarray]] = {}
        for name, images in stacks:
            found.setdefault(name, []).append(self._activations(images))
        return {name: np.concatenate(parts) for name, parts in found.items()}


def evaluate(
    predictions: Iterable[np.ndarray],
    labels: Iterable[np.ndarray],
    n_dims: int,
    background: float,
    signal_range: float,
    weights: Path | str | None = None,
    axes: Sequence[int] = (0, 1, 2),
    download: bool = True,
    batch_size: int = 32,
    device: str = "cpu",
) -> dict[str, Any]:
    """FID between predictions and real labels, in one pass over the images.

    Args:
        predictions, labels: raw images (*S) or (*S, C); volumes are cut into slices across each axis.
        background, signal_range: of the label.
        weights: see :func:`find_weights`.
        axes: across which volumes are cut.

    Returns:
        ``{"computed": True, "axis0": {"value", "images", "real_images", "weights_sha256"[, "warning"]}, ...,
        "weights_sha256"}``, with ``"images"`` as the only cut of 2D images; or ``{"computed": False, "reason"}``.
    """
    cut = partial(whole, n_dims=n_dims, background=background, signal_range=signal_range, axes=axes)
    try:
        network = Network(weights, download, batch_size, device)
        predicted, real = (network.sample(("", cut(image)) for image in images) for images in (predictions, labels))
        return compare(predicted, real, network.sha256)
    except Unavailable as reason:
        return {"computed": False, "reason": str(reason)}
