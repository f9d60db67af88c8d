"""The random deformation of one IXI case at full size: field and inverse, published settings."""

from __future__ import annotations

import argparse

from measure import report

from equisynth.datasets.ixi import IxiPreparation, random_deformation

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=[256, 256, 130])
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    voxel_size = (0.9375, 0.9375, 1.25)
    report(
        "ixi_deformation",
        lambda: random_deformation(arguments.shape, voxel_size, "IXI002-Guys-0828", IxiPreparation()),
        repeats=arguments.repeats,
        shape=arguments.shape,
    )
