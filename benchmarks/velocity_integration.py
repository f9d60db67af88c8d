"""exp(v) and exp(-v) of a velocity field on 64³ voxels, forward and backward."""

from __future__ import annotations

import torch
from measure import report

from equisynth.geometry.warping import integrate_both

if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = (64, 64, 64)
    velocity = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()

    def work() -> None:
        velocity.grad = None
        forward, inverse = integrate_both(velocity)
        (forward.square().mean() + inverse.square().mean()).backward()

    report("velocity_integration", work, shape=shape)
