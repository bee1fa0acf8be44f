"""The resume state: all that a later process needs to go on, one file for whole and for sharded models alike.

    checkpoints/state-EPOCH-BATCH-SHA256.pt    the newest state, and the one before it

The check sum in the name is that of the file. Files are read with `weights_only`: nothing in them is executed.
"""

import hashlib
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch

from vimoe.distributed import all_gather, is_distributed, is_network_error, rank
from vimoe.errors import UserError, first_line

State = dict[str, Any]


class ResumeStates:
    """The newest resume state of a run and the one before it; all processes call the methods together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._newest: Path | None = None  # that is known to be good

    def found(self) -> list[Path]:
        """The states that are there, whole or not, the newest first."""
        return all_gather(sorted(self.folder.glob("state-*.pt"), reverse=True))[0]

    def write(self, state: State, epoch: int, batch: int) -> None:
        """Write the first process's state and read it back; only then all others but the last good one are removed.

        A state is numbers, text and tensors in dictionaries and lists, after so many epochs and batches of the next.

        Raises UserError if the file cannot be written.
        """
        failure = ""
        if rank() == 0:
            try:
                self._replace(state, f"state-{epoch:05}-{batch:07}")
            except (OSError, RuntimeError) as error:
                failure = first_line(error)
        if failure := all_gather(failure)[0]:
            raise UserError(f"cannot write the resume state in {self.folder}: {failure}")

    def _replace(self, state: State, name: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        scratch = self.folder / ".state.writing"
        try:
            with scratch.open("wb") as file:
                hashing = _HashingFile(file)
                torch.save(state, hashing)  # type: ignore[arg-type]
            if _sum(scratch) != hashing.sum.hexdigest():
                raise OSError("it does not read back as it was written")
            newest = scratch.rename(self.folder / f"{name}-{hashing.sum.hexdigest()}.pt")
        finally:
            scratch.unlink(missing_ok=True)
        for path in self.folder.glob("state-*.pt"):
            if path not in (newest, self._newest):
                with suppress(OSError):
                    path.unlink()
        self._newest = newest

    def read(self, restore: Callable[[State], None]) -> bool:
        """Restore the newest state that is whole, and say whether there was one.

        `restore` takes the state, and raises anything where its content makes no sense.

        Raises UserError if there are states, but all are damaged, or they are of an earlier version.
        """
        found = self.found()
        for path in found:
            failures = [failure for failure in all_gather(_failure(path, restore)) if failure]
            if not failures:
                self._newest = path
                return True
            if rank() == 0:
                print(f"vimoe: {path} {failures[0]}; the state before it is tried", file=sys.stderr)
        if found:
            raise UserError(f"{found[-1]} {failures[0]}: remove {self.folder} to start this run anew")
        for name in ("state.pt", "shards"):
            if (self.folder / name).exists():
                raise UserError(f"{self.folder / name} is of an earlier version: remove it to start this run anew")
        return False


def _failure(path: Path, restore: Callable[[State], None]) -> str:
    """Restore a state; gives why that cannot be done, empty where it was."""
    if _sum(path) != path.stem.rpartition("-")[2]:
        return "is damaged"
    try:
        # Many processes share what they have mapped; one alone should not depend on the file any longer.
        restore(torch.load(path, map_location="cpu", weights_only=True, mmap=is_distributed()))
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # what a foreign file makes torch raise knows no bounds
        if is_network_error(error):
            raise
        return f"does not fit this version ({type(error).__name__})"
    return ""


class _HashingFile:
    """A file that is written, and the check sum of what was meant to be in it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.sum = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sum.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()


def _sum(path: Path) -> str:
    """The check sum of a file, empty where it cannot be read."""
    try:
        if path.is_file():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        pass
    return ""
