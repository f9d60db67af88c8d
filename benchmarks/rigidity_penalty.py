"""The rigidity penalty of a displacement field on 64³ voxels, forward and backward."""

from __future__ import annotations

import torch
from measure import report

from equisynth.losses import RigidityPenalty

if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = (64, 64, 64)
    displacement = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    penalty = RigidityPenalty((1.0, 1.0, 1.0))

    def work() -> None:
        displacement.grad = None
        penalty(displacement).backward()

    report("rigidity_penalty", work, repeats=9, shape=shape)
