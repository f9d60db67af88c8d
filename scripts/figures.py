"""Prints the README's table of figures from the reports of the last `dvc repro`, or writes it into the README."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from equisynth.files import atomic_path, read_json

BEGIN, END = "<!-- figures:begin", "<!-- figures:end -->"
NAMES = {
    "lookup_table": "best lookup table of intensities",
    "linear_fit": "best linear map of intensities",
    "mean_label": "mean label",
}


LABELS = {"label_aligned": "aligned label", "label_registered": "label that elastix registered"}


def rows(evaluation: dict[str, Any], experiment: str) -> Iterator[str]:
    """One row per predictor on the test cases, the model first."""
    tested = evaluation["test"]
    compared = {f"**`{experiment}`**": tested["pooled"]}
    compared |= {NAMES.get(name, name): values for name, values in evaluation["references"].items()}
    for name, values in compared.items():
        digits = ".0f" if values["mae"] >= 100 else "#.3g"
        figures = (f"{values[key]:{form}}" for key, form in (("mae", digits), ("psnr", ".1f"), ("ssim", ".3f")))
        yield f"| {name} | {' | '.join(figures)} |"
    count = len(tested["cases"])
    yield f"| *{count} {'case' if count == 1 else 'cases'}, against the {LABELS[tested['label']]}* | | | |"


def table(reports: Path) -> str:
    """The table of all experiments that were evaluated, and the sentences around it."""
    tree = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    paths = {name: reports / "evaluation" / f"{name}.json" for name in tree["pipeline"]}
    evaluations = {name: read_json(path) for name, path in paths.items() if path.is_file()}
    if not evaluations:
        raise SystemExit(f"{reports / 'evaluation'}: holds no evaluation; run `make demo` first")
    measured = {name: found for name, found in evaluations.items() if "pooled" in found["test"]}
    fids = [found["fid"] for found in evaluations.values()]
    absent = next((fid["reason"].split(" and ")[0] for fid in fids if not fid["computed"]), None)
    lines = [
        f"Test cases of phantoms and shipped pictures at scale `{tree['scale']}`; no training saw these labels. The",
        "references are fitted on the same misaligned pairs: a model that does not beat the lookup table has learned",
        "no more than a change of contrast. MAE in the label's unit: white matter = 1, HU, or 8-bit values.",
        "Made by `make figures` after `make demo`.",
        "",
        "| | MAE | PSNR (dB) | SSIM |",
        "|---|---|---|---|",
        *(row for name, found in measured.items() for row in rows(found, name)),
        "",
        "FID: " + ("computed, see `dvc metrics show`." if absent is None else f"not computed ({absent})."),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reports", type=Path, default=Path("reports"))
    parser.add_argument(
        "--write", type=Path, metavar="README", help="replace what stands between the marks of this file"
    )
    arguments = parser.parse_args()
    text = table(arguments.reports)
    if arguments.write is None:
        print(text)
        return
    content = arguments.write.read_text(encoding="utf-8")
    pattern = re.compile(f"({re.escape(BEGIN)}[^\n]*\n).*?({re.escape(END)})", re.DOTALL)
    with atomic_path(arguments.write) as path:
        path.write_text(pattern.sub(lambda marks: f"{marks[1]}{text}\n{marks[2]}", content), encoding="utf-8")


if __name__ == "__main__":
    main()
