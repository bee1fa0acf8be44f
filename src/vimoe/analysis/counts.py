"""Routing counts: how often each class went to each expert, the one table behind every figure of specialisation."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vimoe.errors import UserError
from vimoe.files import write_arrays


@dataclass(frozen=True)
class RoutingCounts:
    """Counts `[layer, class, expert]`."""

    layers: tuple[int, ...]  # block number of each layer, ascending
    num_experts: tuple[int, ...]  # experts of each layer; columns beyond it are zero
    class_names: tuple[str, ...]
    counts: NDArray[np.int64]  # `[layers, classes, max(num_experts)]` int64: assignments of the class to the expert
    # By class, the larger class that it belongs to; empty where the data set has none.
    super_classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, tables: Mapping[int, NDArray[np.int64]], class_names: tuple[str, ...]) -> Self:
        """From each layer's `[classes, experts]`, by block number."""
        sizes = tuple(table.shape[1] for table in tables.values())
        counts = np.zeros((len(tables), len(class_names), max(sizes)), dtype=np.int64)
        for stacked, table in zip(counts, tables.values(), strict=True):
            stacked[:, : table.shape[1]] = table
        return cls(tuple(tables), sizes, class_names, counts)

    def layer(self, number: int) -> NDArray[np.int64]:
        """`[classes, experts]` of one block."""
        i = self.layers.index(number)
        return self.counts[i, :, : self.num_experts[i]]

    def save(self, path: Path) -> None:
        """Write the table as npz, whole or not at all."""
        names = {key: np.array(getattr(self, key), dtype=np.str_) for key in ("class_names", "super_classes")}
        write_arrays(path, layers=self.layers, num_experts=self.num_experts, counts=self.counts, **names)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Raises UserError if the file is missing, damaged or something else."""
        try:
            with np.load(path, allow_pickle=False) as table:
                layers, num_experts, names = (table[key].tolist() for key in ("layers", "num_experts", "class_names"))
                groups = table["super_classes"].tolist() if "super_classes" in table else ()
                return cls(tuple(layers), tuple(num_experts), tuple(names), table["counts"], tuple(groups))
        except FileNotFoundError as error:
            raise UserError(f"there are no routing counts at {path}") from error
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} holds no routing counts: {error}") from error
