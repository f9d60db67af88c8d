"""Prints the exact versions of this environment as a lock file: no local builds, links, hosts or CUDA packages."""

from __future__ import annotations

import sys
from importlib.metadata import distributions

HEADER = """\
# Exact versions that were tested together, made by `make lock` from a clean environment (Python {python}).
# torch and torchvision stand without a build's local part: the package index decides between CPU and CUDA."""
LEFT_OUT = ("equisynth", "pip", "setuptools", "wheel", "triton", "nvidia-", "cuda-")


def main() -> None:
    """One sorted ``name==version`` per distribution, the local part of the version (``+cpu``) taken off."""
    versions = {
        found.metadata["Name"].lower().replace("_", "-"): found.version.partition("+")[0] for found in distributions()
    }
    print(HEADER.format(python=".".join(map(str, sys.version_info[:2]))))
    for name, version in sorted(versions.items()):
        if not name.startswith(LEFT_OUT):
            print(f"{name}=={version}")


if __name__ == "__main__":
    main()
