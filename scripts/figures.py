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


def rows(evaluation: dict[str, Any], experiment: str) -> Iterator[str]:
    """One row per predictor on the test cases, the model first."""
    compared = {f"`{experiment}`": evaluation["test"]["pooled"]}
    compared |= {NAMES.get(name, name): values for name, values in evaluation["references"].items()}
    for name, values in compared.items():
        yield f"| {name} | {values['mae']:.3f} | {values['psnr']:.1f} | {values['ssim']:.3f} |"


def table(experiment: str, reports: Path) -> str:
    """The table and the sentences around it."""
    evaluation = read_json(reports / "evaluation" / f"{experiment}.json")
    scale = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))["scale"]
    count = len(evaluation["test"]["cases"])
    residual = evaluation["references"]["lookup_table"]["residual_rmse"]
    fid = evaluation["fid"]
    found = "computed" if fid["computed"] else f"not computed ({fid['reason'].split(' and ')[0]})"
    lines = [
        f"Test cases ({count}) at scale `{scale}`, against the aligned label that no training saw, in the evaluation",
        "mask; the references are fitted on the same misaligned pairs. Made by `make figures` after `make demo`.",
        "",
        "| | MAE | PSNR (dB) | SSIM |",
        "|---|---|---|---|",
        *rows(evaluation, experiment),
        "",
        f"The lookup table leaves a root mean square residual of {residual:.3f} on the training pairs. FID: {found}.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiment", default="ixi-eqsim_com_eqadv")
    parser.add_argument("--reports", type=Path, default=Path("reports"))
    parser.add_argument(
        "--write", type=Path, metavar="README", help="replace what stands between the marks of this file"
    )
    arguments = parser.parse_args()
    text = table(arguments.experiment, arguments.reports)
    if arguments.write is None:
        print(text)
        return
    content = arguments.write.read_text(encoding="utf-8")
    pattern = re.compile(f"({re.escape(BEGIN)}[^\n]*\n).*?({re.escape(END)})", re.DOTALL)
    with atomic_path(arguments.write) as path:
        path.write_text(pattern.sub(lambda marks: f"{marks[1]}{text}\n{marks[2]}", content), encoding="utf-8")


if __name__ == "__main__":
    main()
