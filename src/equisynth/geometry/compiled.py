"""Loops over voxels compiled to machine code, kept on disk between processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compiles on the first call; releases the interpreter lock so that threads run side by side."""
    return cast(Function, njit(function, cache=True, nogil=True))
