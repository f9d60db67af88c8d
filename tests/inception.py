"""A seeded random state of pytorch-fid's Inception: FID with it means nothing, but it is computed for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from equisynth.evaluation import fid


class _Built(Exception):
    """The network stands; only its weights are missing."""


def write_inception(path: Path) -> None:
    """Saves the state as pytorch-fid's own weights file is saved."""
    module = fid.import_inception()
    built: list[Any] = []
    original_load, original_build = module.load_state_dict_from_url, module._inception_v3

    def load(*_: Any, **__: Any) -> Any:
        raise _Built

    def build(*arguments: Any, **settings: Any) -> Any:
        built.append(original_build(*arguments, **settings))
        return built[-1]

    torch.manual_seed(0)
    module.load_state_dict_from_url, module._inception_v3 = load, build
    try:
        module.fid_inception_v3()
    except _Built:
        torch.save(built[0].state_dict(), path)
    finally:
        module.load_state_dict_from_url, module._inception_v3 = original_load, original_build
