"""The configuration of a model's MoE layers: what `config.json` keeps beside the weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from math import comb, prod
from typing import Any, Literal, get_args

from vimoe.errors import UserError

Routing = Literal["image", "token"]
Gate = Literal["straight_through", "softmax"]
GateInput = Literal["cls", "mean"]
Init = Literal["preserve", "copy"]

# More experts than this are refused: a 12-block ViT-S would already store 300 M parameters a layer.
MAX_EXPERTS = 256


@dataclass(frozen=True)
class MoEConfig:
    """How the FFNs of a model were turned into MoE layers.

    Attributes:
        layers: Blocks whose FFN is an MoE layer, counted from 0, ascending.
        num_experts: Routed experts of each of these layers (they may differ after pruning).
        top_k: Experts chosen for each image or token.
        shared_expert: Whether an always-on expert is added to the chosen ones.
        routing: `image` makes one choice an image, `token` one a token.
        gate: `straight_through` has a value that sums to 1 and the gradient of log p;
            `softmax` is the raw probability, as in the paper.
        gate_input: What the router sees under `image` routing: the class token or the mean patch.
        init: `preserve` scales the copies so that the model's output does not change,
            `copy` takes the FFN as it is into every expert, as in the paper.
        router_noise: Whether training adds normal noise (σ = 1/E) to the router's logits.
    """

    layers: tuple[int, ...]
    num_experts: tuple[int, ...]
    top_k: int = 1
    shared_expert: bool = True
    routing: Routing = "image"
    gate: Gate = "straight_through"
    gate_input: GateInput = "cls"
    init: Init = "preserve"
    router_noise: bool = False

    def __post_init__(self) -> None:
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise UserError(f"layers must be distinct block numbers in ascending order, got {list(self.layers)}")
        if len(self.num_experts) != len(self.layers):
            raise UserError(f"{len(self.layers)} MoE layers need as many num_experts, got {list(self.num_experts)}")
        for layer, experts in zip(self.layers, self.num_experts, strict=True):
            if not 1 <= experts <= MAX_EXPERTS:
                raise UserError(f"num_experts of block {layer} must be 1 to {MAX_EXPERTS}, got {experts}")
            if not 1 <= self.top_k <= experts:
                raise UserError(f"top_k must be between 1 and the {experts} experts of block {layer}, got {self.top_k}")
        for name, choices in (("routing", Routing), ("gate", Gate), ("gate_input", GateInput), ("init", Init)):
            if getattr(self, name) not in get_args(choices):
                raise UserError(f"{name} must be one of {', '.join(get_args(choices))}, got {getattr(self, name)!r}")

    @property
    def routing_degree(self) -> int:
        """C(N, k) multiplied over the MoE layers: how many paths an input can take (paper: C(N, k)^L)."""
        return prod(comb(experts, self.top_k) for experts in self.num_experts)

    @property
    def shared_share(self) -> float:
        """Share of the FFN's output that the shared expert carries right after upcycling."""
        return 0.5 if self.init == "preserve" else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, the inverse of `from_dict`."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MoEConfig:
        """Read what `to_dict` wrote.

        Raises:
            UserError: A key is unknown or missing, or a value is not allowed.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise UserError(f"unknown MoE setting {unknown[0]!r}: was this written by a newer version?")
        for field in fields(cls):
            value, kind = values.get(field.name, field.default), type(field.default)
            if kind in (int, bool, str) and type(value) is not kind:
                raise UserError(f"MoE setting {field.name!r} must be of type {kind.__name__}, got {value!r}")
        try:
            layers, experts = tuple(values["layers"]), tuple(values["num_experts"])
            for name, numbers in (("layers", layers), ("num_experts", experts)):
                if any(type(number) is not int for number in numbers):
                    raise UserError(f"MoE setting {name!r} must be a list of whole numbers, got {list(numbers)}")
            return cls(**{**values, "layers": layers, "num_experts": experts})
        except (KeyError, TypeError) as error:
            raise UserError(f"incomplete MoE settings: {error}") from error
