"""Prints seconds and peak memory of each pipeline stage, and which of them ran since a given file was touched."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(".equisynth/timings"))
    parser.add_argument("--since", type=Path, help="stages whose timing is newer than this file are those that ran")
    arguments = parser.parse_args()
    since = arguments.since.stat().st_mtime if arguments.since and arguments.since.exists() else 0.0
    files = sorted(arguments.folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    ran = [path for path in files if path.stat().st_mtime >= since]
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in ran]
    if not rows:
        print("no stage ran: everything was up to date")
        return
    width = max(len("stage"), *(len(row["stage"]) for row in rows))
    print(f"\n{'stage':<{width}}  seconds  peak MiB")
    for row in rows:
        print(f"{row['stage']:<{width}}  {row['seconds']:7.1f}  {row['peak_memory_mib']:8.0f}")
    print(f"{'total':<{width}}  {sum(row['seconds'] for row in rows):7.1f}")
    if len(files) > len(ran):
        print(f"{len(files) - len(ran)} more stage(s) were up to date")


if __name__ == "__main__":
    main()
