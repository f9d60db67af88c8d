"""Reports of a handful of experiments in every state, for tests of the page: numbers and pictures drawn from a seed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
Picture = Callable[[str, str, str, float], bytes]
"""(kind, case, plane, error) -> PNG."""
BRAIN = ("axial", "coronal", "sagittal")
MODELS = {"ixi-eqsim_com_eqadv": 0.20, "ixi-noreg": 0.27, "ixi-pix2pix": 0.24}
"""Mean absolute errors; the last lacks parts of what the others have."""
STRANGE = "ixi-<img src=x onerror=document.title='broken'>"
TEST_CASES = 8


def make_reports(folder: Path, picture: Picture | None = None, strange: bool = True) -> dict[str, Any]:
    """Writes ``reports/`` and ``params.yaml`` into a folder; the parameters."""
    picture = picture or draw
    tree = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    entry = {"code": "supervised", "overrides": {}}
    names = [*MODELS, *([STRANGE] if strange else [])]
    tree["pipeline"] |= {
        name: {"dataset": "ixi", "method": "noreg", **entry} for name in names if name != "ixi-pix2pix"
    }
    tree["pipeline"]["ixi-eqsim_com_eqadv"] |= {"method": "eqsim_com_eqadv", "code": "equivariant"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    reports = folder / "reports"
    for position, (name, error) in enumerate(MODELS.items()):
        write(reports / "evaluation" / f"{name}.json", evaluation(error, TEST_CASES, deformed="eqsim" in name))
        if name != "ixi-pix2pix":
            write(reports / "history" / f"{name}.json", history(12 - 2 * position, error))
            write(reports / "registry" / f"{name}.json", registered("ixi", position + 1, position == 0))
        panels(reports / "panels" / name, name, "ixi", BRAIN, ["case2", "case5", f"case{position}"], error, picture)
    for name, error in {"coco-lr_eqsim_com": 30.0, "coco-lr_noreg_aug": 38.0}.items():
        write(reports / "evaluation" / f"{name}.json", evaluation(error, 3, scale=255, fid=True))
        write(reports / "history" / f"{name}.json", history(6, error))
        panels(reports / "panels" / name, name, "coco", ("picture",), ["case0", "case1"], error / 100, picture)
    write(reports / "history" / "cermep-eqsim_com_eqadv.json", history(3, 100.0))  # trained, not evaluated
    if strange:
        write(reports / "evaluation" / f"{STRANGE}.json", evaluation(0.3, 7))
        (reports / "history" / f"{STRANGE}.json").write_text("{ not JSON", encoding="utf-8")
    return dict(tree)


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def evaluation(
    error: float, cases: int, scale: float = 6.5, fid: bool = False, deformed: bool = False
) -> dict[str, Any]:
    """As stage ``evaluate`` writes it."""
    result: dict[str, Any] = {}
    for split, count in (("validate", 2), ("test", cases)):
        random = np.random.RandomState(count)  # the same cases are hard for every model
        values = {f"case{n}": _measures(error * (1 + 0.3 * random.randn() / 2 + 0.01 * n), scale) for n in range(count)}
        pooled = {
            key: float(np.mean([case[key] for case in values.values()]))
            for key in ("mae", "mse", "psnr", "ssim", "nmi")
        }
        result[split] = {"split": split, "label": "label_aligned", "cases": values, "pooled": pooled}
        if deformed:
            numbers = {"folded_share": 0.001, "mean_displacement_mm": 2.5, "distance_voxels": 1.25}
            numbers |= {"distance_unregistered_voxels": 1.75, "drift_axis0_voxels": -0.1}
            part = {"split": split, "cases": dict.fromkeys(values, numbers), "pooled": numbers}
            result.setdefault("deformation", {})[split] = part
    table = _measures(scale * 0.05, scale)
    result["references"] = {"lookup_table": table | {"residual_rmse": 1.0}, "linear_fit": table, "mean_label": table}
    cut = {
        "value": 90.5 * error / scale,
        "images": cases,
        "real_images": cases,
        "warning": "fewer than 2048 images: biased upwards",
    }
    result["fid"] = {"split": "test", "computed": False, "reason": "no weights: weights/fid_inception.pth is absent"}
    if fid:
        result["fid"] = {"split": "test", "computed": True, "images": cut, "weights_sha256": "0123456789abcdef"}
    return result


def _measures(error: float, scale: float) -> dict[str, float]:
    share = error / scale
    psnr = -20 * np.log10(share)
    return {"mae": error, "mse": error**2 * 1.6, "psnr": float(psnr), "ssim": float(1 - 3 * share), "nmi": 1.2 - share}


def history(epochs: int, error: float) -> list[dict[str, float]]:
    """As stage ``train`` writes it."""
    random = np.random.RandomState(epochs)
    records = []
    for epoch in range(1, epochs + 1):
        level = error * (1 + 2 / epoch)
        records.append(
            {
                "epoch": float(epoch), "train/similarity": level, "train/commutation": level / 7,
                "train/forward_rigidity": 1e-3 * 5.0**-epoch, "validation/similarity": level * 1.1,
                "validation/selection": level * (1.1 + 0.05 * random.randn()), "seconds": 2.0,
            }
        )  # fmt: skip
    return records


def registered(name: str, version: int, champion: bool) -> dict[str, Any]:
    """As stage ``register`` writes it."""
    reason = "validate.mae 0.201 beats 0.24" if champion else "validate.mae 0.27 does not beat 0.201"
    return {
        "name": name, "version": version, "alias": "champion", "champion": champion, "reason": reason, "forced": False,
        "uri": f"models:/{name}/{version}", "run": "0" * 32,
    }  # fmt: skip


def panels(
    folder: Path, name: str, dataset: str, planes: tuple[str, ...], cases: list[str], error: float, picture: Picture
) -> None:
    """As stage ``report`` writes it."""
    is_equivariant = "eqsim" in name
    content: dict[str, Any] = {
        "experiment": name, "dataset": dataset, "method": name.partition("-")[2], "scale": "demo",
        "n_dims": 3 if len(planes) > 1 else 2, "input": "T2", "label": "PD", "unit": "relative to white matter",
        "trains_on_label": "deformed", "cases": [], "error_range": [0, 1.5], "error_colours": ["#000004", "#fcffa4"],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    for case, why in zip(cases, (["first"], ["best"], ["worst"]), strict=False):
        entry: dict[str, Any] = {"case": case, "split": "test", "chosen": why, "measures": {"mae": error}, "planes": []}
        entry |= {"reference": "label_aligned", "checkerboard_with": "label_aligned"}
        for plane in planes:
            images = {}
            kinds = ["input", "label", "aligned", "prediction", "error", "checkerboard"]
            for kind in kinds + (["deformation"] if is_equivariant else []):
                file = f"{case}-{plane}-{kind}.png"
                own = error if kind not in ("input", "label", "aligned") else 0.0
                (folder / file).write_bytes(picture(kind, case, plane, own))
                images[kind] = file
            entry["planes"].append({"plane": plane, "index": None if plane == "picture" else 20, "images": images})
        content["cases"].append(entry)
    write(folder / "panels.json", content)


def draw(kind: str, case: str, plane: str, error: float) -> bytes:
    """A small grey pattern that differs wherever the arguments do."""
    seed = sum(ord(letter) * (n + 1) for n, letter in enumerate(f"{kind}/{case}/{plane}/{error:.3f}"))
    pattern = np.random.RandomState(seed).randint(0, 255, (8, 6)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.kron(pattern, np.ones((6, 6), np.uint8))).save(buffer, "PNG")
    return buffer.getvalue()
