"""Files that ``torch.save`` wrote elsewhere, read without executing anything that they hold."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from equisynth.errors import UserError

_ENTRY = re.compile(
    r"data\.pkl|data/\d+|version|byteorder|\.data/serialization_id|\.format_version|\.storage_alignment"
)
"""What ``torch.save`` puts into its archive; programs (TorchScript) hold more."""
_GLOBAL = re.compile(r"(?:GLOBAL |allowed_global )(?P<name>[\w.]+)")


def read_torch_file(path: Path) -> Any:
    """Tensors, numbers, texts, and lists and dictionaries of these; tensors stay in the file until they are used.

    Raises:
        UserError: absent, no archive of ``torch.save``, damaged, or more than data in it.
    """
    _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        found = _GLOBAL.search(str(error))
        what = found["name"] if found else "objects"
        raise UserError(
            f"{path}: holds more than weights ({what}), and nothing in it was executed; save its state dicts alone"
        ) from None
    except Exception as error:  # a damaged pickle can end in any of them
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(f"{path}: is damaged ({reason}); get it again") from None


def _check_archive(path: Path) -> None:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {what}; give a file of weights that torch.save wrote")
    if path.suffix == ".safetensors":
        raise UserError(f"{path}: is a safetensors file, as this program writes; give a file that torch.save wrote")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            for entry in entries:
                inside = entry.filename.partition("/")[2]
                if not _ENTRY.fullmatch(inside) or entry.compress_type != zipfile.ZIP_STORED:
                    raise UserError(
                        f"{path}: holds '{entry.filename[:80]}', which torch.save does not write for weights"
                    )
            if sum(entry.filename.endswith("/data.pkl") for entry in entries) != 1:
                raise UserError(f"{path}: is a zip archive without the data.pkl that torch.save writes")
            broken = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path}: is no whole zip archive, as torch.save writes since version 1.6 ({reason}); get the file again, "
            "or save it with a newer torch"
        ) from None
    if broken is not None:
        raise UserError(f"{path}: is damaged at '{broken}'; get it again")
