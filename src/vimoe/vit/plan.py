"""The plan: what is to become of each MoE layer. Data alone, so that it can be read, edited and carried out."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Self

from vimoe.errors import UserError
from vimoe.files import write_text
from vimoe.moe.config import MoEConfig, whole_number, whole_numbers


@dataclass(frozen=True)
class LayerPlan:
    """What is to become of one MoE layer.

    Attributes:
        layer: Its block number.
        experts: The routed experts to keep, by number; empty makes the layer a plain FFN again.
        load: Share of the assignments that each expert of the layer got, if it was measured; it weighs the
            experts' mean where they merge, or the layer becomes a plain FFN.
        reason: Why, in words.
        evidence: The numbers that decided, by name; nothing is made of them when the plan is carried out.
        merge: Whether the other experts are merged into those that are kept instead of removed.

    Raises UserError if a value has another type than it must; numpy's numbers become Python's.
    """

    layer: int
    experts: tuple[int, ...]
    load: tuple[float, ...] | None = None
    reason: str = ""
    evidence: Mapping[str, float] = field(default_factory=dict)
    merge: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", whole_number("not a plan: layer", self.layer))
        where = f"plan for block {self.layer}"
        object.__setattr__(self, "experts", whole_numbers(f"{where}: experts", self.experts))
        try:
            load = None if self.load is None else tuple(map(float, self.load))
            evidence = {str(name): float(value) for name, value in dict(self.evidence).items()}
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{where}: load and evidence must be numbers: {error}") from error
        object.__setattr__(self, "load", load)
        object.__setattr__(self, "evidence", evidence)
        object.__setattr__(self, "reason", str(self.reason))
        if type(self.merge) is not bool:
            raise UserError(f"{where}: merge must be true or false, got {self.merge!r}")

    @property
    def pruned(self) -> bool:
        """Whether the layer becomes a plain FFN."""
        return not self.experts


@dataclass(frozen=True)
class Plan:
    """What is to become of the MoE layers of a model; a layer that is not named stays as it is.

    `split` is the one whose images decided, empty where none did: what is reported comes from another one.

    >>> plan = vimoe.Plan.load("runs/digits/plan.json")  # `vimoe.analyze` writes it
    >>> [part.layer for part in plan.layers]
    [1, 2]
    """

    layers: tuple[LayerPlan, ...]
    split: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.layers, tuple) or not all(isinstance(part, LayerPlan) for part in self.layers):
            raise UserError(f"the layers of a plan are a tuple of LayerPlans, got {self.layers!r}")

    def changes(self, config: MoEConfig) -> bool:
        """Whether a model of this configuration loses an expert or a layer by it."""
        return any(len(part.experts) < config.sizes[part.layer] for part in self.layers)

    def check(self, config: MoEConfig) -> None:
        """Raise a `UserError` where the plan does not fit a model of this configuration."""
        sizes = config.sizes
        for i, part in enumerate(self.layers):
            where = f"plan for block {part.layer}"
            if part.layer not in sizes:
                raise UserError(f"{where}: the model's MoE layers are blocks {', '.join(map(str, sizes))}")
            if part.layer in [other.layer for other in self.layers[:i]]:
                raise UserError(f"{where}: it appears twice")
            experts = sizes[part.layer]
            if not set(part.experts) <= set(range(experts)) or len(set(part.experts)) != len(part.experts):
                raise UserError(
                    f"{where}: experts must be distinct numbers from 0 to {experts - 1}, got {list(part.experts)}"
                )
            if part.merge:
                config.check_merging()
            if 0 < len(part.experts) < config.top_k:
                raise UserError(f"{where}: {len(part.experts)} experts are too few for top_k {config.top_k}")
            if part.load is not None and not _are_shares(part.load, experts):
                raise UserError(f"{where}: load must be {experts} shares, none negative and not all 0")

        if config.router_scope == "model":
            kept = {layer: list(range(experts)) for layer, experts in sizes.items()}
            kept |= {part.layer: list(part.experts) for part in self.layers}
            left = {layer: experts for layer, experts in kept.items() if experts}
            if left and (min(left) != config.layers[0] or any(each != left[min(left)] for each in left.values())):
                raise UserError(
                    f"the router of block {config.layers[0]} decides for all MoE layers (router_scope 'model'): keep "
                    "it as long as another is left, and the same experts in each, in the same order"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, the inverse of `from_dict`."""
        return {
            "split": self.split,
            "layers": [
                {
                    "layer": part.layer,
                    "action": "prune" if part.pruned else "merge" if part.merge else "keep",
                    "experts": list(part.experts),
                    "load": None if part.load is None else list(part.load),
                    "reason": part.reason,
                    "evidence": dict(part.evidence),
                }
                for part in self.layers
            ],
        }

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Read what `to_dict` wrote, or what somebody made of it by hand.

        Raises UserError if a key is missing or unknown, or a value has another type than it must.
        """
        if not isinstance(values, dict) or not isinstance(values.get("layers"), list):
            raise UserError("not a plan: it must hold a list named layers")
        parts = [_layer_from_dict(part) for part in values["layers"]]
        return cls(tuple(part for part in parts if part is not None), str(values.get("split", "")))

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON, whole or not at all. Raises UserError if the file cannot be written."""
        write_text(Path(path), json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a plan, written by `save` or by hand. Raises UserError if there is none, or it makes no sense."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise UserError(f"there is no plan at {path}: `vimoe analyze` writes one") from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"cannot read {path}: {error}") from error


def blocks(numbers: Iterable[int]) -> str:
    """`blocks 0 to 3, 5`: three and more in a row are written as a range."""
    listed = sorted(numbers)
    if not listed:
        return "no block"
    runs: list[list[int]] = []
    for number in listed:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    words = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return f"block{'s' if len(listed) > 1 else ''} {', '.join(words)}"


def _are_shares(load: tuple[float, ...], experts: int) -> bool:
    return len(load) == experts and all(isfinite(share) and share >= 0 for share in load) and sum(load) > 0


_KEYS = ("layer", "action", "experts", "load", "reason", "evidence")


def _layer_from_dict(part: Any) -> LayerPlan | None:
    """One layer's plan; None where it is kept whole, whoever wrote that leaves its experts out."""
    if not isinstance(part, dict) or not {"layer", "action"} <= set(part):
        raise UserError(f"not a plan: each layer must have its block number `layer` and an `action`, got {part!r}")
    values = dict(part)
    action = values.pop("action")
    where = f"plan for block {values['layer']}"
    if action not in ("keep", "merge", "prune"):
        raise UserError(f"{where}: action must be keep, merge or prune, got {action!r}")
    if unknown := [key for key in part if key not in _KEYS]:
        raise UserError(f"{where}: unknown key {unknown[0]!r}; there is {', '.join(_KEYS)}")
    plan = LayerPlan(**{"experts": (), **values}, merge=action == "merge")
    if plan.merge and plan.pruned:
        raise UserError(f"{where}: action merge needs the experts that the others are merged into")
    if action == "prune" and not plan.pruned:
        raise UserError(f"{where}: action prune goes with no experts, got {list(plan.experts)}")
    return None if action == "keep" and plan.pruned else plan
