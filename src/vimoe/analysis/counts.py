"""Routing counts: how often each class went to each expert, the one table behind every figure of specialisation."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vimoe.errors import UserError
from vimoe.files import write_bytes
from vimoe.moe.config import MoEConfig
from vimoe.tasks.classification import evaluating
from vimoe.vit.blocks import moe_layers
from vimoe.vit.recording import record_routing


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
    def of(cls, tables: Mapping[int, NDArray[np.int64]], class_names: tuple[str, ...]) -> RoutingCounts:
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

    def by_super_class(self) -> RoutingCounts:
        """The same assignments by super-class, in the order of their first classes; needs `super_classes`."""
        names = tuple(dict.fromkeys(self.super_classes))
        belongs = np.array([[of == name for of in self.super_classes] for name in names], dtype=np.int64)
        return RoutingCounts(self.layers, self.num_experts, names, belongs @ self.counts)

    def check(self, config: MoEConfig) -> None:
        """Raise a `UserError` where the counts are not those of a model of this configuration."""
        mine, its = (dict(zip(c.layers, c.num_experts, strict=True)) for c in (self, config))
        if mine != its:
            told = ["blocks " + ", ".join(f"{n} ({e} experts)" for n, e in sizes.items()) for sizes in (mine, its)]
            raise UserError(f"the routing counts are of another model: of {told[0]}, and the model has {told[1]}")

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
    def load(cls, path: Path) -> RoutingCounts:
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


def class_expert_counts(expert_ids: Tensor, labels: Tensor, num_classes: int, num_experts: int) -> Tensor:
    """How many of the k choices of each class fell on each expert.

    Args:
        expert_ids: `[S, k]` int64.
        labels: `[S]` int64, the class of each selection.
        num_classes: Number of classes.
        num_experts: Number of experts E.

    Returns:
        `[num_classes, E]` int64.
    """
    cells = labels[:, None] * num_experts + expert_ids
    return torch.bincount(cells.flatten(), minlength=num_classes * num_experts).view(num_classes, num_experts)


def count_routing(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], class_names: tuple[str, ...], device: str = "cpu"
) -> RoutingCounts:
    """Send labelled images through the model and count where each class goes, batch by batch.

    Under `token` routing every patch counts for its image's class; prefix tokens are left out.

    Raises:
        UserError: The model has no MoE layer.
    """
    layers = moe_layers(model)
    sizes = {number: layer.experts.num_experts for number, layer in layers.items()}
    counts = {number: torch.zeros(len(class_names), size, dtype=torch.int64) for number, size in sizes.items()}
    with evaluating(model):
        for images, labels in batches:
            with record_routing(model) as record:
                model(images.to(device))
            for number, expert_ids in record.expert_ids.items():
                ids, classes = expert_ids, labels
                if layers[number].routing == "token":
                    per_image = ids.unflatten(0, (len(labels), -1))[:, layers[number].num_prefix_tokens :]
                    ids, classes = per_image.flatten(0, 1), labels.repeat_interleave(per_image.shape[1])
                counts[number] += class_expert_counts(ids, classes, len(class_names), sizes[number])
    return RoutingCounts.of({number: table.numpy() for number, table in counts.items()}, class_names)
