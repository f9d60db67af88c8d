"""From all that an evaluation found to one number per measure, under the names that DVC and MLflow show.

docs/evaluation.md lists names and units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from equisynth.datasets.splits import SPLITS
from equisynth.evaluation.aligned import named_measures
from equisynth.evaluation.names import PREFIXES


def summary(details: Mapping[str, Any]) -> dict[str, Any]:
    """One number per measure; what was not measured is left out, and a missing FID says why."""
    metrics: dict[str, Any] = {split: split_measures(details, split) for split in SPLITS if split in details}
    table = details["references"].get("lookup_table")
    if table is not None:
        metrics["reference"] = {"lookup_table": {key: table[key] for key in ("mae", "ssim") if table[key] is not None}}
    found = details["fid"]
    if found["computed"]:
        cuts = {key: value for key, value in found.items() if isinstance(value, Mapping)}
        metrics |= {f"fid/{key}": value["value"] for key, value in cuts.items()}
        metrics |= {f"fid/{key}_images": value["images"] for key, value in cuts.items()}
        metrics["fid"] = {"computed": True, "weights_sha256": found["weights_sha256"]}
        warning = next((value["warning"] for value in cuts.values() if "warning" in value), None)
        metrics["fid"] |= {"warning": warning} if warning else {}
    else:
        metrics["fid"] = {"computed": False, "reason": found["reason"].split(" and ")[0]}  # whole in the details
    return {key: value for key, value in metrics.items() if value != {}}


def split_measures(details: Mapping[str, Any], split: str) -> dict[str, float]:
    """The pooled measures of a split that have a value, all kinds side by side."""
    measures = named_measures(details[split])
    for kind, prefix in PREFIXES.items():
        pooled = details.get(kind, {}).get(split, {}).get("pooled", {})
        measures |= {f"{prefix}{key}": value for key, value in pooled.items() if value is not None}
    return measures
