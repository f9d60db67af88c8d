"""One training step at the published size (64³, features 64 … 512, batch 4) on a GPU."""

from __future__ import annotations

import json

import torch
from measure import report
from training_step import training_step

PATCH, WIDE, NARROW = (64, 64, 64), (64, 128, 256, 512, 512), (32, 64, 128, 256, 256)

if __name__ == "__main__":
    if not torch.cuda.is_available():
        print(json.dumps({"benchmark": "training_step_full", "skipped": "needs a CUDA device"}))
    else:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        features = {"i2i": WIDE, "discriminator": WIDE}
        features |= dict.fromkeys(("rigid_reg", "cross_modality_reg", "intra_modality_reg"), NARROW)
        step = training_step(PATCH, WIDE, 4, "conditional", features=features, normalization_groups=16)
        report("training_step_full", step, patch=PATCH, batch_size=4, tf32=True)
