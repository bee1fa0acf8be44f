"""Files that are written whole or not at all (under another name, then renamed), and YAML read. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from vimoe.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; its folder is made if needed.

    Raises:
        UserError: It cannot be written.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; its folder is made if needed.

    Raises:
        UserError: It cannot be written.
    """
    scratch = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(data)
        os.replace(scratch, path)
    except OSError as error:
        if scratch.exists():
            scratch.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        UserError: It cannot be read, or holds anything else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-13
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values, got {type(content).__name__}")
    return content
