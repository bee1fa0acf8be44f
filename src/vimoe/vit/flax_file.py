"""The arrays in flax's checkpoints: msgpack in one file or in V-MoE's shards, or `.npz`. Nothing in a file is run.

The formats are those of `flax.serialization` and of google-research/vmoe's `checkpoints/serialization.py`.
"""

from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vimoe.errors import UserError, first_line

_DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "float16", "bfloat16")}
# Numbers of msgpack's extension types, and the keys that mark a dictionary as an array in pieces.
_ARRAY, _SLICES, _INDEX = 1, 6, 8
_CHUNKED, _PIECES = "__msgpack_chunked_array__", "__msgpack_array_chunk_a87ca2__"


class _Entry(NamedTuple):
    """An array in an index, whose pieces are in the shards."""

    shape: tuple[int, ...]


class _Piece(NamedTuple):
    place: tuple[slice, ...]
    value: Tensor


def read_flax(path: Path) -> dict[str, Tensor]:
    """All floating-point arrays of a checkpoint by their path in its tree, such as `params/head/kernel`.

    `path` is a file of `flax.serialization`, an `.npz` with such paths as names, or what the names of V-MoE's shards
    begin with (`X` for `X.index` and `X.data-00000-of-00001`).

    Raises UserError if there is no such file, it is damaged or of another format, or msgpack is not installed.
    """
    path = path.with_name(path.name.removesuffix(".index"))
    index = path.with_name(f"{path.name}.index")
    if not path.is_file() and not index.is_file():
        raise UserError(f"there is no file {path}, nor {index.name} beside it")
    try:
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files if arrays[name].dtype.kind == "f"}
        leaves = _leaves(_unpack(path)) if path.is_file() else _from_shards(path, index)
        return {name: value for name, value in leaves.items() if isinstance(value, Tensor)}
    except UserError:
        raise
    except Exception as error:  # what a foreign file makes its readers raise knows no bounds
        raise UserError(f"{path} is damaged or no checkpoint of flax: {first_line(error)}") from error


def _leaves(tree: Any, path: str = "") -> dict[str, Any]:
    """What is no dictionary, in the order of jax, which sorts names."""
    if not isinstance(tree, dict):
        return {path: tree}
    found: dict[str, Any] = {}
    for name in sorted(tree):
        found |= _leaves(tree[name], f"{path}/{name}" if path else name)
    return found


def _from_shards(path: Path, index: Path) -> dict[str, Tensor]:
    head = _unpack(index)
    entries = {name: entry for name, entry in _leaves(head["index"]).items() if isinstance(entry, _Entry)}
    pieces: dict[int, list[_Piece]] = {}
    count = head["shard_count"]
    for shard in range(count):
        file = path.with_name(f"{path.name}.data-{shard:05d}-of-{count:05d}")
        if not file.is_file():
            raise UserError(f"{index} needs {file.name} beside it")
        for number, found in _unpack(file).items():
            pieces.setdefault(number, []).extend(found)
    return {name: _join(name, entry.shape, pieces.get(n, [])) for n, (name, entry) in enumerate(entries.items())}


def _join(name: str, shape: tuple[int, ...], pieces: list[_Piece]) -> Tensor:
    if not pieces or sum(piece.value.numel() for piece in pieces) != prod(shape):
        raise ValueError(f"its shards do not hold all of {name}")
    whole = torch.empty(shape, dtype=pieces[0].value.dtype)
    for place, value in pieces:
        whole[place] = value
    return whole


def _unpack(path: Path) -> Any:
    try:
        import msgpack
    except ImportError as error:
        raise UserError("flax's checkpoints need msgpack: pip install 'vimoe[vmoe]'") from error
    return msgpack.unpackb(path.read_bytes(), ext_hook=_extension, object_hook=_dictionary, strict_map_key=False)


def _extension(kind: int, data: bytes) -> Any:
    import msgpack

    if kind not in (_ARRAY, _SLICES, _INDEX):
        return None
    parts = msgpack.unpackb(data, raw=True)
    if kind == _ARRAY:
        shape, dtype, values = parts
        known = _DTYPES.get(dtype.decode())
        return None if known is None else torch.frombuffer(bytearray(values), dtype=known).reshape(shape)
    if kind == _SLICES:
        return tuple(slice(*msgpack.unpackb(part)) for part in parts)
    return _Entry(tuple(msgpack.unpackb(parts[0])[0]))


def _dictionary(found: dict[str, Any]) -> Any:
    if _CHUNKED in found:
        return torch.cat(_in_order(found["chunks"])).reshape(_in_order(found["shape"]))
    if _PIECES in found:
        del found[_PIECES]
        return {
            int(number): [
                _Piece(place, torch.cat(parts).reshape([axis.stop - axis.start for axis in place]))
                for parts, place in pieces
                if isinstance(parts[0], Tensor)
            ]
            for number, pieces in found.items()
        }
    return found


def _in_order(numbered: dict[str, Any]) -> list[Any]:
    return [numbered[str(number)] for number in range(len(numbered))]
