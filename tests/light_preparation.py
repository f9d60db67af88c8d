"""Preparation without what takes long: cases are read and written, but neither registered nor scaled; no sheet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from equisynth.datasets import cermep, ixi, staining
from equisynth.datasets.raw_scan import Scan
from equisynth.stages import prepare

_FACTS: dict[str, Any] = {"orientation": "RAS", "body_quantiles": [1.0] * 5, "edge_shares": [[0.0, 0.0]] * 3}


def lighten(replace: Callable[[Any, str, Any], None] = setattr) -> None:
    """Replaces the slow steps by ``replace(module, name, stand_in)``."""
    replace(ixi, "prepare_case", _ixi_case)
    replace(cermep, "prepare_case", _cermep_case)
    replace(staining, "_registered", lambda image, *rest: np.zeros((2, *image.shape[:2]), np.float32))
    replace(prepare, "sheet_png", lambda dataset: b"sheet")


def _ixi_case(scans: Mapping[str, Scan], *rest: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"input": scans["T2"].values, "label": scans["PD"].values}, _FACTS


def _cermep_case(scans: Mapping[str, Scan], *rest: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    labels = dict.fromkeys(("label", "label_registered", "label_native"), scans["ct"].values)
    affines = {"affine": scans["T1w"].affine.tolist(), "native_affine": scans["ct"].affine.tolist()}
    return {"input": scans["T1w"].values, **labels}, _FACTS | affines
