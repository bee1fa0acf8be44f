"""Files that are written whole or not at all (under another name, then renamed). Imports no torch."""

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from vimoe.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; its folder is made if needed. Raises UserError if it cannot be written."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_arrays(path: Path, **arrays: Any) -> None:
    """Write arrays as npz by name, whole or not at all; raises as `write_text`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; raises as `write_text`."""
    scratch = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(data)
        os.replace(scratch, path)
    except OSError as error:
        if scratch.exists():
            scratch.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}") from error
