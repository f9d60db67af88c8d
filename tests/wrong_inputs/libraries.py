"""What commands load when they need it, loaded once for all processes; see ``runner.py``."""

from __future__ import annotations

import accelerate  # noqa: F401
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
import nibabel  # noqa: F401
import optuna  # noqa: F401
import tifffile  # noqa: F401
import torch
from sqlalchemy.orm import configure_mappers

import equisynth.apply
import equisynth.cohort_run
import equisynth.evaluation.aligned
import equisynth.methods.equivariant
import equisynth.search.run
import equisynth.stages.evaluate
import equisynth.stages.predict
import equisynth.stages.prepare
import equisynth.stages.register
import equisynth.stages.train  # noqa: F401

configure_mappers()
with torch.device("meta"):  # torch, too, loads much when it is first used
    torch.nn.Conv3d(1, 1, 1)
torch.optim.Adam([torch.zeros(1)], fused=True)
