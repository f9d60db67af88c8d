"""`python scripts/published_stages.py` writes published/dvc.yaml: the published experiments as targets of `dvc repro`.

It also writes their table in docs/experiments.md.

The stages are those of dvc.yaml that run once per experiment, so nothing is stated twice; experiments that the default
pipeline runs have their stages there already. Two things differ, both because DVC reads every dvc.yaml of a repository
whatever it is asked for:

- Panels are no outputs: what reads their folder, the page of all experiments, would wait for every published one.
- Outputs are not cached, and figures are no DVC metrics: `dvc pull` would fail and `dvc metrics show` print empty rows
  for what was never run.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from equisynth.files import atomic_path
from equisynth.params import published, resolve

REPOSITORY = Path(__file__).parent.parent
FILE = REPOSITORY / "published" / "dvc.yaml"
PAGE = REPOSITORY / "docs" / "experiments.md"
BEGIN, END = "<!-- experiments:begin -->\n", "<!-- experiments:end -->"
HEAD = """\
# Written by `python scripts/published_stages.py` from params.yaml and dvc.yaml: change those, then run it again.
# The published experiments, each with the stages of dvc.yaml: `dvc repro published/dvc.yaml:report@ixi-pix2pix`.
vars:
  - ../params.yaml:scale

stages:
"""
# The default pipeline cannot know which of its experiments work on slices, these do: their items say `part`.
EXACT = {
    f"{place}.${{item.dataset}}": [f"{place}.${{item.dataset}}.{part}" for part in ("data", "training", "${item.part}")]
    for place in ("datasets", "scales.${scale}")
}


# Written all the same: the page of all experiments depends on the folder around it, and must not ask for every one.
UNTRACKED = ("reports/panels/${key}",)


@cache
def stages() -> dict[str, Any]:
    """The stages of dvc.yaml as written."""
    return dict(yaml.safe_load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"])


@cache
def parameters() -> dict[str, Any]:
    """params.yaml as written."""
    return dict(yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8")))


def experiments() -> dict[str, dict[str, str]]:
    """Name -> dataset, method, the method's file and the part of the dataset that it trains on."""
    tree, items = parameters(), {}
    for name, (dataset, method) in published(tree).items():
        entry = tree["methods"][method]
        on_slices = entry.get("slices") and "slices" in tree["datasets"][dataset]
        part = "slices" if on_slices else "training"
        items[name] = {"dataset": dataset, "method": method, "code": entry["method"], "part": part}
    return {name: item for name, item in items.items() if name not in tree["pipeline"]}


def text() -> str:
    """The file's content."""
    parts = []
    foreach = "&experiments\n" + "".join(f"      {key}: {_flow(item)}\n" for key, item in experiments().items())
    for stage, content in stages().items():
        if "pipeline" in content.get("foreach", ""):
            body = yaml.safe_dump(_moved(content["do"]), sort_keys=False, width=1000)
            lines = "".join(f"      {line}\n" for line in body.splitlines())
            parts.append(f"  {stage}:\n    foreach: {foreach}    do:\n{lines}")
            foreach = "*experiments\n"
    return HEAD + "\n".join(parts)


def _moved(do: dict[str, Any]) -> dict[str, Any]:
    """A stage of dvc.yaml as it stands one folder deeper."""
    moved = {"wdir": "..", "cmd": do["cmd"]}
    stated = (EXACT.get(key, [key]) for key in do.get("params", []) if key != "pipeline.${key}")
    if keys := [key for exact in stated for key in exact]:
        moved["params"] = keys
    moved["deps"] = do["deps"]
    outputs = [path for kind in ("outs", "metrics", "plots") for path in do.get(kind, [])]
    paths = [path if isinstance(path, str) else next(iter(path)) for path in outputs]
    paths = [path for path in paths if path not in UNTRACKED]
    moved["outs"] = [{path: {"cache": False}} for path in paths]
    return moved


def _flow(item: dict[str, str]) -> str:
    return yaml.safe_dump(item, default_flow_style=True, sort_keys=False, width=1000).strip()


def table() -> str:
    """All published experiments as a table in Markdown."""
    tree = parameters()
    lines = ["| experiment | method's file | trains on | patch | epochs | stages in |", "|---|---|---|---|---|---|"]
    for name in published(tree):
        settings = resolve(tree, name, "paper")
        patch = " x ".join(map(str, settings.patch_size))
        place = "`dvc.yaml`" if name in tree["pipeline"] else "`published/dvc.yaml`"
        label = settings.trains_on_label
        lines.append(f"| `{name}` | {settings.method} | {label} | {patch} | {settings.epochs} | {place} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """docs/experiments.md with the table of today."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    for path, content in ((FILE, text()), (PAGE, page())):
        with atomic_path(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
