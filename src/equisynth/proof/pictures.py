"""The page's pictures: test cases side by side, deformations, curves over the epochs. Runs in, figures out."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from equisynth.proof.results import Found, title

DPI = 80  # small files: they are kept in git
GRID = 4  # pixels between drawn lines
Samples = Mapping[str, npt.NDArray[Any]]


def samples(run: Found) -> Samples:
    """The images that a run kept."""
    with np.load(run.folder / "samples.npz", allow_pickle=False) as stored:
        return dict(stored)


def draw_translations(variants: Mapping[str, Sequence[Found]]) -> Figure:
    """Input | truth | label as trained on | each variant's prediction (its first seed); one row per test case."""
    kept = {variant: samples(runs[0]) for variant, runs in variants.items()}
    first = next(iter(kept.values()))
    misaligned = next((s for name, s in kept.items() if "_on_" not in name), first)  # not all train on this label
    columns = {"input": (first, "input"), "truth": (first, "truth"), "misaligned label": (misaligned, "label")}
    columns |= {title(variant): (kept[variant], "prediction") for variant in kept}
    count = sum(name.startswith("input-") for name in first)
    figure = Figure(figsize=(1.7 * len(columns), 1.75 * count + 0.3), layout="constrained")
    axes = figure.subplots(count, len(columns), squeeze=False)
    for row in range(count):
        for ax, (name, (source, role)) in zip(axes[row], columns.items(), strict=True):
            other = "input" if role == "input" else "truth"
            _show(ax, source[f"{role}-{row}"], first[f"{other}-{row}"])
            ax.set_title(name if row == 0 else "", fontsize=8)
    return figure


def draw_deformations(variants: Mapping[str, Sequence[Found]]) -> Figure | None:
    """The true deformation of the first test case beside what each variant that registers predicts."""
    kept = {title(variant): samples(runs[0]) for variant, runs in variants.items()}
    fields = {name: s["predicted_field-0"] for name, s in kept.items() if "predicted_field-0" in s}
    if not fields:
        return None
    fields = {"true deformation": next(iter(kept.values()))["field-0"]} | fields
    figure = Figure(figsize=(2.2 * len(fields) + 0.5, 2.5), layout="constrained")
    axes = figure.subplots(1, len(fields), squeeze=False)[0]
    longest = max(float(np.linalg.norm(field, axis=0).max()) for field in fields.values()) or 1.0
    for ax, (name, field) in zip(axes, fields.items(), strict=True):
        drawn = ax.imshow(np.linalg.norm(field, axis=0), cmap="viridis", vmin=0, vmax=longest)
        rows, columns = np.indices(field.shape[1:]) + field
        for line in range(0, field.shape[1], GRID):
            ax.plot(columns[line], rows[line], color="white", linewidth=0.5)
        for line in range(0, field.shape[2], GRID):
            ax.plot(columns[:, line], rows[:, line], color="white", linewidth=0.5)
        ax.set(xlim=(-0.5, field.shape[2] - 0.5), ylim=(field.shape[1] - 0.5, -0.5), xticks=[], yticks=[])
        ax.set_title(name, fontsize=8)
    figure.colorbar(drawn, ax=axes, shrink=0.8, label="pixels")
    return figure


def draw_curves(variants: Mapping[str, Sequence[Found]]) -> Figure:
    """Over the epochs: equivariance error, the measure that chooses the best epoch, PSNR of the last six."""
    figure = Figure(figsize=(10.5, 2.8), layout="constrained")
    axes = figure.subplots(1, 3)
    curves = {"validation/equivariance": "equivariance error", "validation/selection": "similarity on validation crops"}
    for number, (variant, runs) in enumerate(variants.items()):
        for position, run in enumerate(runs):
            style = {"color": f"C{number}", "linewidth": 1.0, "label": title(variant) if position == 0 else None}
            for ax, key in zip(axes, curves, strict=False):
                points = [(record["epoch"], record[key]) for record in run.history if key in record]
                ax.plot(*zip(*points, strict=True), **style)
            last = [(int(epoch), psnr) for epoch, psnr in run.result["epochs"].items() if psnr is not None]
            axes[2].plot(*zip(*last, strict=True), marker=".", **style)
    for ax, name in zip(axes, [*curves.values(), "test PSNR (dB) of the last six"], strict=True):
        ax.set_title(name, fontsize=9)
        ax.set_xlabel("epoch", fontsize=8)
        ax.tick_params(labelsize=7)
    axes[0].set_yscale("log")
    axes[0].legend(fontsize=7)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file, the same bytes for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _show(ax: Axes, image: npt.NDArray[Any], like: npt.NDArray[Any]) -> None:
    """Colours (H, W, 3) as a photograph; a slice (H, W) as radiologists turn it, in the grey window of another."""
    ax.set(xticks=[], yticks=[])
    if image.ndim == 3:
        ax.imshow(image, interpolation="nearest")
        return
    low, high = np.percentile(like, (0.5, 99.5))
    ax.imshow(image.T, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="lower", interpolation="nearest")
