"""Which of two evaluated models is better, measure by measure, on the cases that both translated.

Detailed evaluations (``reports/evaluation/<experiment>.json``) become tables of measure and case; two of them become
rows of paired differences. Nothing here knows how a measure was made, only its name, unit and direction.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equisynth.errors import UserError
from equisynth.evaluation.intervals import FEWEST_CASES, Difference, paired_difference
from equisynth.evaluation.names import LEFT_OUT, PREFIXES, prefix_of_whole_images
from equisynth.files import read_json
from equisynth.params import Tree, dataset_of

Table = Mapping[str, Mapping[str, float]]
"""Measure -> case -> value."""

FAMILIES = {
    "": "Against the aligned label",
    "registered_": "Against the registered label",
    "local_": "Local registrations",
    "full_valid_": "Full-valid tiles",
    "deformation_": "Deformations",
    "fid/": "FID",
}
"""Beginnings of names -> what such measures are taken against, in the order in which they are shown."""
COUNTS = {"locations", "tiles", "samples", "failures", "images", "patches"}
KEYS = ("mae", "mse", "me", "psnr", "ssim", "nmi")
DIRECTIONS = {
    "lower": re.compile(r"mae|mse|(largest_)?distance(_without_intra)?(_voxels|_pixels|_mm)?|folded_share"),
    "higher": re.compile(r"psnr|ssim|nmi"),
    "zero": re.compile(r"me|drift\w*"),
}
UNITS = ("voxels", "pixels", "mm")
"""Ends of names that say their unit."""
OPTIONS = "seed|threads|radius_mm|label_radius_mm|weight_std_mm"
VARIANT = re.compile(rf"(\.epoch\d+)?(\.(train|validate|test))?(\.({OPTIONS})[\d.e+-]+)*$")
"""End of the name of an evaluation that was made by hand: of another epoch or split, or with other options."""


@dataclass(frozen=True)
class Measure:
    """A flat name such as ``local_mae``, taken apart."""

    name: str

    @property
    def family(self) -> str:
        """The beginning that says what it is measured against; see `FAMILIES`."""
        return next((family for family in FAMILIES if family and self.name.startswith(family)), "")

    @property
    def key(self) -> str:
        return self.name.removeprefix(self.family)

    @property
    def title(self) -> str:
        """Without what its family says."""
        words = self.key.removesuffix(f"_{self._last}") if self._last in UNITS else self.key
        return words.upper() if words in KEYS else words.replace("_", " ")

    @property
    def direction(self) -> str:
        """``lower``, ``higher`` or ``zero``: what is better; empty where neither is."""
        if self.family == "fid/":
            return "lower"
        return next((direction for direction, keys in DIRECTIONS.items() if keys.fullmatch(self.key)), "")

    def badness(self, value: float) -> float | None:
        """Lower is better; None where no direction is."""
        return {"lower": value, "higher": -value, "zero": abs(value)}.get(self.direction)

    def unit(self, of_label: str) -> str:
        """In words; empty of plain numbers."""
        known = {"mae": of_label, "me": of_label, "mse": f"({of_label})²" if of_label else "", "psnr": "dB"}
        return self._last if self._last in UNITS else known.get(self.key, "")

    @property
    def _last(self) -> str:
        return self.key.rpartition("_")[2]

    @property
    def order(self) -> tuple[int, int, str]:
        """By family, then as papers list them."""
        key = KEYS.index(self.key) if self.key in KEYS else len(KEYS)
        return list(FAMILIES).index(self.family), key, self.title


@dataclass(frozen=True)
class Row:
    """One measure of two models: means over the cases that both have, and b - a."""

    measure: Measure
    a: float
    b: float
    difference: Difference

    @property
    def better(self) -> str | None:
        """``a`` or ``b`` where the interval says so; None where it does not, or where no direction is better.

        What is best at zero has no sure winner: the interval is of the signed difference.
        """
        if not self.difference.is_clear or self.measure.direction not in ("lower", "higher"):
            return None
        return "b" if (self.difference.mean < 0) == (self.measure.direction == "lower") else "a"


# --- detailed evaluations -> tables


def case_values(details: Mapping[str, Any], split: str) -> dict[str, dict[str, float]]:
    """Everything that was measured per case of a split: measure -> case -> value, finite ones only."""
    table: dict[str, dict[str, float]] = {}
    for prefix, part in _parts(details, split):
        for case, values in (part.get("cases") or {}).items():
            for name, value in _numbers(prefix, values):
                table.setdefault(name, {})[case] = value
    return {measure.name: table[measure.name] for measure in sorted(map(Measure, table), key=lambda m: m.order)}


def pooled_values(details: Mapping[str, Any], split: str) -> dict[str, float]:
    """The same pooled over cases: measure -> value; the FID too, where it is of this split."""
    found: dict[str, float] = {}
    for prefix, part in _parts(details, split):
        found |= dict(_numbers(prefix, part.get("pooled") or {}))
    fid = details.get("fid") or {}
    if fid.get("computed") and fid.get("split") == split:
        values = {key: value["value"] for key, value in fid.items() if isinstance(value, Mapping) and "value" in value}
        found |= {f"fid/{key}": float(value) for key, value in values.items()}
    return {measure.name: found[measure.name] for measure in sorted(map(Measure, found), key=lambda m: m.order)}


def reasons(details: Mapping[str, Any], split: str) -> dict[str, str]:
    """What was not measured and why: beginning of the measures' names -> reason."""
    found = {}
    for prefix, part in _parts(details, split):
        if part.get("computed") is False and part.get("reason") != LEFT_OUT:
            found[prefix] = str(part.get("reason", "no reason given"))
    return found


def inapplicable(details: Mapping[str, Any], split: str) -> tuple[str, ...]:
    """Of `reasons` those that lie in the kind of dataset or method: nothing was missed."""
    return tuple(prefix for prefix, part in _parts(details, split) if part.get("applies") is False)


def _parts(details: Mapping[str, Any], split: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Beginning of names, and what holds ``cases`` and ``pooled`` below it."""
    aligned = details.get(split)
    if isinstance(aligned, Mapping):
        yield prefix_of_whole_images(aligned), aligned
    for section, prefix in PREFIXES.items():
        part = details.get(section)
        if not isinstance(part, Mapping):
            continue
        if part.get("computed") is False:
            yield prefix, part
            continue
        of_split = part.get(split)
        if isinstance(of_split, Mapping):
            known = "cases" in of_split or "computed" in of_split
            inner = [of_split] if known else [node for node in of_split.values() if isinstance(node, Mapping)]
            yield from ((prefix, node) for node in inner)


def _numbers(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and key not in COUNTS and math.isfinite(value):
            yield f"{prefix}{key}", float(value)


# --- two tables -> rows


def compare(a: Table, b: Table, measures: Sequence[str] = ()) -> list[Row]:
    """Differences b - a of the measures that both have, or of those that are named.

    Raises:
        UserError: a named measure is not there; no measure has a case that both have.
    """
    shared = [name for name in a if name in b and a[name].keys() & b[name].keys()]
    if not shared:
        raise UserError("no case was measured for both; evaluate both on the same prepared dataset and split")
    for name in measures:
        if name not in shared:
            raise UserError(f"measure: found '{name}', expected one that both have: {', '.join(shared)}")
    rows = []
    for name in measures or shared:
        cases = [case for case in a[name] if case in b[name]]
        means = [sum(table[name][case] for case in cases) / len(cases) for table in (a, b)]
        rows.append(Row(Measure(name), means[0], means[1], paired_difference(b[name], a[name])))
    return rows


# --- the command


@dataclass(frozen=True)
class Comparison:
    """Rows of one pair of experiments."""

    a: str
    b: str
    split: str
    rows: Sequence[Row]

    def to_json(self) -> dict[str, Any]:
        return {"a": self.a, "b": self.b, "split": self.split, "rows": [_row_json(row) for row in self.rows]}


def run(
    experiments: Sequence[str], split: str, measures: Sequence[str], tree: Tree, reports: Path = Path("reports")
) -> list[Comparison]:
    """Compares the first experiment with each of the others.

    Args:
        tree: of params.yaml, which knows the experiments' datasets.

    Raises:
        UserError: fewer than two experiments, an unknown one, one that is not evaluated, two datasets, nothing shared.
    """
    if len(experiments) < 2:
        raise UserError(f"compare: found {len(experiments)} experiment, expected two or more: equisynth compare A B")
    datasets = {name: dataset_of(tree, base_name(name)) for name in experiments}
    if len(set(datasets.values())) > 1:
        found = ", ".join(f"{name} is of {dataset}" for name, dataset in datasets.items())
        raise UserError(f"compare: found different datasets ({found}), expected experiments of one dataset")
    tables = {name: _table(name, split, tree, reports) for name in experiments}
    first, *others = experiments
    comparisons = []
    for other in others:
        try:
            comparisons.append(Comparison(first, other, split, compare(tables[first], tables[other], measures)))
        except UserError as error:
            raise UserError(f"compare: {first} and {other}, {split} split: {error}") from None
    return comparisons


def show(comparisons: Sequence[Comparison]) -> None:
    """Prints tables that fit 80 columns."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Printed

    console = Console(highlight=False)
    for comparison in comparisons:
        table = Printed(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("", overflow="fold", max_width=22)
        for title in ("A", "B", "B - A", "95% interval"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("n", justify="right")
        table.add_column("better")
        for row in comparison.rows:
            better = {"a": "A", "b": "B", None: "unclear" if row.difference.interval else ""}[row.better]
            measure = row.measure.name + {"lower": " ↓", "higher": " ↑"}.get(row.measure.direction, "")
            cells = (number(row.a), number(row.b), signed(row.difference.mean), interval_text(row.difference))
            table.add_row(measure, *cells, str(row.difference.cases), better if row.measure.direction else "")
        console.print(f"A: {comparison.a}\nB: {comparison.b}\n{comparison.split} split", markup=False)
        console.print(table)
        few = sorted({row.difference.cases for row in comparison.rows if row.difference.interval is None})
        if few:
            print(f"No interval below {FEWEST_CASES} cases (found {', '.join(map(str, few))}): they say too little.")
        print("Means over the n cases that both have. Better: ↓ lower, ↑ higher.\n")


def base_name(experiment: str) -> str:
    """Without what an evaluation by hand adds to the name of an experiment (``.epoch12``, ``.train``)."""
    return VARIANT.sub("", experiment)


def number(value: float) -> str:
    """Four digits that count; small and large ones stay readable."""
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return f"{value:#.4g}".rstrip(".")
    return f"{value:.3g}" if abs(value) < 1 or abs(value) >= 1e6 else f"{value:.0f}"


def signed(value: float) -> str:
    """Three digits that count, and always a sign."""
    size = abs(value)
    text = (
        f"{size:#.3g}".rstrip(".") if size == 0 or 1e-3 <= size < 1e3 else f"{size:.3g}" if size < 1 else f"{size:.0f}"
    )
    return f"{'-' if value < 0 else '+'}{text}"


def interval_text(difference: Difference) -> str:
    if difference.interval is None:
        return "-"
    return " to ".join(signed(end) for end in difference.interval)


def _table(experiment: str, split: str, tree: Tree, reports: Path) -> dict[str, dict[str, float]]:
    path = reports / "evaluation" / f"{experiment}.json"
    if not path.is_file():
        base = base_name(experiment)
        hint = f"run: dvc repro evaluate@{base}"
        if base not in tree["pipeline"]:
            hint = f"add it to `pipeline` in params.yaml, then {hint}"
        raise UserError(f"{path}: not found, '{experiment}' is not evaluated yet; {hint}")
    details = read_json(path)
    if not isinstance(details, Mapping):
        raise UserError(f"{path}: expected the evaluation of an experiment; delete it and make it again")
    table = case_values(details, split)
    if not table:
        why = "; ".join(reasons(details, split).values()) or "it holds no such split"
        raise UserError(f"{path}: no case of {split} was measured ({why})")
    return table


def _row_json(row: Row) -> dict[str, Any]:
    found = row.difference
    return {
        "measure": row.measure.name,
        "better_when": row.measure.direction or None,
        "cases": found.cases,
        "mean_a": row.a,
        "mean_b": row.b,
        "difference": found.mean,
        "confidence": found.confidence,
        "interval": found.interval,
        "better": row.better,
    }
