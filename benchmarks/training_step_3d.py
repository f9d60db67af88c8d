"""One training step in 3D with discriminator: patches of 32³, features 8-16-32, batch 4."""

from __future__ import annotations

from measure import report
from training_step import training_step

if __name__ == "__main__":
    patch, features, batch_size = (32, 32, 32), (8, 16, 32), 4
    step = training_step(patch, features, batch_size, "conditional")
    report("training_step_3d", step, patch=patch, features=features, batch_size=batch_size, discriminator=True)
