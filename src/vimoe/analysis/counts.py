"""Routing counts: how often each class went to each expert, the one table behind every figure of specialisation."""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from vimoe.errors import UserError
from vimoe.files import write_bytes


@dataclass(frozen=True)
class RoutingCounts:
    """Counts `[layer, class, expert]`.

    Attributes:
        layers: Block number of each layer, ascending.
        num_experts: Experts of each layer; columns beyond it are zero.
        class_names: By class.
        counts: `[layers, classes, max(num_experts)]` int64: assignments of the class to the expert.
        super_classes: By class, the larger class that it belongs to; empty where the data set has none.
    """

    layers: tuple[int, ...]
    num_experts: tuple[int, ...]
    class_names: tuple[str, ...]
    counts: NDArray[np.int64]
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

    def by_super_class(self) -> Self:
        """The same assignments by super-class, in the order of their first classes; needs `super_classes`."""
        names = tuple(dict.fromkeys(self.super_classes))
        belongs = np.array([[of == name for of in self.super_classes] for name in names], dtype=np.int64)
        return type(self)(self.layers, self.num_experts, names, belongs @ self.counts)

    def save(self, path: Path) -> None:
        """Write the table as npz, whole or not at all."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            layers=np.array(self.layers),
            num_experts=np.array(self.num_experts),
            class_names=np.array(self.class_names),
            counts=self.counts,
            super_classes=np.array(self.super_classes, dtype=np.str_),
        )
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            UserError: The file is missing, damaged or something else.
        """
        try:
            with np.load(path, allow_pickle=False) as table:
                return cls(
                    tuple(int(n) for n in table["layers"]),
                    tuple(int(n) for n in table["num_experts"]),
                    tuple(str(name) for name in table["class_names"]),
                    table["counts"],
                    tuple(str(name) for name in table["super_classes"]) if "super_classes" in table else (),
                )
        except FileNotFoundError as error:
            raise UserError(f"there are no routing counts at {path}") from error
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} holds no routing counts: {error}") from error
