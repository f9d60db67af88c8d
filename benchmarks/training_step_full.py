"""One training step at the published size (64³, features 64 … 512, batch 4) on a GPU.

Options choose how networks compute: ``--precision bf16`` or ``fp16``, ``--no-tf32`` for whole single precision.
"""

from __future__ import annotations

import argparse
import json

import torch
from measure import report
from training_step import training_step

PATCH, WIDE, NARROW = (64, 64, 64), (64, 128, 256, 512, 512), (32, 64, 128, 256, 256)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("no", "bf16", "fp16"), default="no", help="of the networks")
    parser.add_argument("--tf32", action=argparse.BooleanOptionalAction, default=True, help="products of tensor cores")
    parser.add_argument("--batch-size", type=int, default=4, help="default: as published")
    options = parser.parse_args()
    how = {"precision": options.precision, "tf32": options.tf32, "batch_size": options.batch_size}
    if not torch.cuda.is_available():
        print(json.dumps({"benchmark": "training_step_full", "skipped": "needs a CUDA device"} | how))
    else:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
        features = {"i2i": WIDE, "discriminator": WIDE}
        features |= dict.fromkeys(("rigid_reg", "cross_modality_reg", "intra_modality_reg"), NARROW)
        step = training_step(
            PATCH, WIDE, options.batch_size, "conditional", options.precision, features=features,
            normalization_groups=16,
        )  # fmt: skip
        report("training_step_full", step, patch=PATCH, **how)
