"""One training step in 2D without discriminator: patches of 128², features 8-16-32, batch 4."""

from __future__ import annotations

from measure import report
from training_step import training_step

if __name__ == "__main__":
    patch, features, batch_size = (128, 128), (8, 16, 32), 4
    step = training_step(patch, features, batch_size, "none")
    report("training_step_2d", step, patch=patch, features=features, batch_size=batch_size, discriminator=False)
