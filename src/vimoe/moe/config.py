"""The configuration of a model's MoE layers: what `config.json` keeps beside the weights."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import comb, prod
from numbers import Integral, Real
from typing import Any, Literal, Self, get_args

from vimoe.errors import UserError

Routing = Literal["image", "token"]
Gate = Literal["straight_through", "softmax", "renormalised"]
GateInput = Literal["cls", "mean"]
RouterKind = Literal["top_k", "prioritised", "expert_choice", "soft"]
RouterScope = Literal["layer", "model"]
Balance = Literal["loss", "bias"]
Init = Literal["preserve", "copy", "residual", "drop", "split"]

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
            `softmax` is the raw probability, as in the paper; `renormalised` divides it by the sum of the chosen ones,
            as Mixtral does.
        gate_input: What the router sees under `image` routing: the class token or the mean patch.
        init: `preserve` scales the copies so that the model's output does not change;
            `copy` takes the FFN as it is into every expert, as in the paper;
            `residual` leaves the whole FFN to the shared expert, and the last linear map of the routed ones starts
            at 0: the output does not change, whatever the gate;
            `drop` is `copy` with `drop_share` of each copy's hidden units drawn anew (Drop-Upcycling, Nakamura et al.
            2025); `split` cuts one FFN into its `granularity` slices instead of copying it.
        router_noise: Whether training adds normal noise (σ = 1/E) to the router's logits.
        granularity: m, where an expert is one of the m slices of a copy (DeepSeekMoE, Dai et al. 2024). The slices of a
            copy start with the same router row and so are chosen together.
        drop_share: Share of the hidden units that `drop` draws anew.
        router: `top_k`: each input chooses; `prioritised`: so it does, and experts serve the most decided ones up to
            `capacity`; `expert_choice`: experts choose tokens up to `capacity`; `soft`: every slot of every expert is a
            mean of the tokens.
        router_scope: `layer` gives each MoE layer a router; under `model` the first one's router decides for all of
            them (Mobile V-MoE, Daxberger et al. 2023).
        balance: `loss`, or `bias`: choices are balanced without a loss, see `vimoe.moe.balance`.
        capacity: Tokens of an image that an expert serves, as a factor on its even share.
        slots: Slots of each expert under `soft`.
        expert_rank: Rank of the experts' differences from the shared expert; 0 for experts of their own.
        router_jitter: Training multiplies the router's input by uniform numbers within 1 ± this.
        router_temperature: Divides the router's logits.
        expert_dropout: Rate of dropout on the experts' hidden units instead of the FFN's own; 0 keeps that.
        guide: By class, the expert that training guided its images to (see `guide_loss`), numbered as before any
            pruning; empty where routing was found by itself.
        router_rows: For each layer the expert that each row of its router chooses, ascending; empty where each expert
            has one row, as long as none were merged.

    >>> vimoe.MoEConfig(layers=(10, 11), num_experts=(4, 4)).routing_degree
    16
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
    granularity: int = 1
    drop_share: float = 0.5
    router: RouterKind = "top_k"
    router_scope: RouterScope = "layer"
    balance: Balance = "loss"
    capacity: float = 1.0
    slots: int = 1
    expert_rank: int = 0
    router_jitter: float = 0.0
    router_temperature: float = 1.0
    expert_dropout: float = 0.0
    guide: tuple[int, ...] = ()
    router_rows: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        for name in ("layers", "num_experts", "guide"):
            object.__setattr__(self, name, whole_numbers(name, getattr(self, name)))
        whole_number("top_k", self.top_k)
        for name, lowest in (("granularity", 1), ("slots", 1), ("expert_rank", 0)):
            if not lowest <= whole_number(name, getattr(self, name)) <= 4096:
                raise UserError(f"{name} must be {lowest} to 4096, got {getattr(self, name)}")
        for name, (low, high) in _RANGES.items():
            object.__setattr__(self, name, number(name, getattr(self, name), low, high))
        for name in ("shared_expert", "router_noise"):
            if type(getattr(self, name)) is not bool:
                raise UserError(f"{name} must be true or false, got {getattr(self, name)!r}")
        for name, choices in _CHOICES.items():
            one_of(name, getattr(self, name), get_args(choices))
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise UserError(f"layers must be distinct block numbers in ascending order, got {list(self.layers)}")
        if len(self.num_experts) != len(self.layers):
            raise UserError(f"{len(self.layers)} MoE layers need as many num_experts, got {list(self.num_experts)}")
        for layer, experts in zip(self.layers, self.num_experts, strict=True):
            if not 1 <= experts <= MAX_EXPERTS:
                raise UserError(f"num_experts of block {layer} must be 1 to {MAX_EXPERTS}, got {experts}")
            if not 1 <= self.top_k <= experts:
                raise UserError(f"top_k must be between 1 and the {experts} experts of block {layer}, got {self.top_k}")
        listed = self.router_rows if isinstance(self.router_rows, list | tuple) else [self.router_rows]
        object.__setattr__(self, "router_rows", tuple(whole_numbers("router_rows", rows) for rows in listed))
        if self.router_rows:
            self.check_merging()
            if len(self.router_rows) != len(self.layers):
                raise UserError(f"{len(self.layers)} MoE layers need as many router_rows, got {len(self.router_rows)}")
            for layer, experts, rows in zip(self.layers, self.num_experts, self.router_rows, strict=True):
                if rows and (sorted(set(rows)) != list(range(experts)) or list(rows) != sorted(rows)[:MAX_EXPERTS]):
                    raise UserError(
                        f"router_rows of block {layer} must be its {experts} experts in order, each once or more, and "
                        f"{MAX_EXPERTS} at the most"
                    )
        if self.gate == "renormalised" and self.top_k == 1:
            raise UserError(
                "gate 'renormalised' is 1 for a single choice and gives its router no gradient: take top_k 2 or more, "
                "or gate 'straight_through'"
            )
        if self.init == "residual" and not self.shared_expert:
            raise UserError("init 'residual' needs the shared expert: without one nothing would carry the output")
        if self.router != "top_k" and self.routing == "image":
            raise UserError(f"router {self.router!r} is for tokens: use routing 'token'")
        if self.router in ("expert_choice", "soft") and (self.top_k > 1 or self.balance == "bias"):
            raise UserError(f"router {self.router!r} balances by itself and has no top_k: leave both at their defaults")
        one = len(set(self.num_experts)) == 1 and self.router == "top_k" and self.routing == "image"
        if self.router_scope == "model" and not one:
            raise UserError(
                "router_scope 'model' is one choice for an image and all MoE layers: it needs routing 'image', router "
                "'top_k' and the same experts in each layer"
            )
        if self.guide and (self.routing != "image" or not all(0 <= expert < MAX_EXPERTS for expert in self.guide)):
            raise UserError("guidance sends the images of a class to one expert: it needs routing 'image'")
        if self.expert_rank and (self.init != "residual" or self.granularity > 1):
            raise UserError("expert_rank needs init 'residual' and granularity 1: experts are differences from the FFN")

    def check_choices(self, purpose: str) -> None:
        """Raise a `UserError` where nothing is chosen that could serve this purpose."""
        if self.router == "soft":
            raise UserError(f"router 'soft' mixes all tokens for all experts: there are no choices to {purpose}")

    def check_layers_apart(self) -> None:
        """Raise a `UserError` where no MoE layer can be looked at without the others."""
        if self.router_scope == "model":
            raise UserError("router_scope 'model' chooses once for all MoE layers: they cannot be ablated one by one")

    def check_merging(self) -> None:
        """Raise a `UserError` where an expert cannot be merged into another one."""
        plain = self.router == "top_k" and self.router_scope == "layer" and self.balance == "loss"
        if not plain or self.granularity > 1 or self.expert_rank:
            raise UserError(
                "experts merge under router 'top_k', router_scope 'layer' and balance 'loss', and where each is a "
                "whole FFN (granularity 1, no expert_rank): with these settings they can only be removed"
            )

    @property
    def sizes(self) -> dict[int, int]:
        """`num_experts` by block."""
        return dict(zip(self.layers, self.num_experts, strict=True))

    @property
    def expert_of(self) -> dict[int, tuple[int, ...]]:
        """`router_rows` by block."""
        return dict(zip(self.layers, self.router_rows, strict=False))

    def with_layers(self, num_experts: Mapping[int, int], expert_of: Mapping[int, tuple[int, ...]]) -> Self | None:
        """The same settings for layers of so many experts, by block; None if there is none."""
        if not num_experts:
            return None
        rows = tuple(expert_of.get(layer, ()) for layer in num_experts)
        sizes = tuple(num_experts.values())
        return replace(self, layers=tuple(num_experts), num_experts=sizes, router_rows=rows if any(rows) else ())

    @property
    def routing_degree(self) -> int:
        """C(N, k) multiplied over the routers: how many paths an input can take (paper: C(N, k)^L)."""
        choosing = self.num_experts[:1] if self.router_scope == "model" else self.num_experts
        return prod(comb(experts, self.top_k) for experts in choosing)

    @property
    def keeps_function(self) -> bool:
        """Whether an upcycled model starts with the dense model's outputs, but for rounding."""
        if self.init == "residual":
            return True
        exact = self.gate != "softmax" and self.router == "top_k" and self.init != "drop"
        shares = self.routed_share + (self.shared_share if self.shared_expert else 0.0)
        return exact and shares == 1 and (self.init != "split" or set(self.num_experts) == {self.top_k})

    @property
    def shared_share(self) -> float:
        """Share of the FFN's output that the shared expert carries right after upcycling."""
        return 0.5 if self.init in ("preserve", "split") else 1.0

    @property
    def routed_share(self) -> float:
        """Share of the FFN's output that each routed expert carries right after upcycling, before its gate."""
        return 0.0 if self.init == "residual" else self.shared_share if self.shared_expert else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, the inverse of `from_dict`."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Read what `to_dict` wrote. Raises UserError if a key is unknown or missing, or a value is not allowed."""
        if not isinstance(values, dict):
            raise UserError(f"MoE settings must be a dictionary, got {values!r}")
        if unknown := sorted(set(values) - {field.name for field in fields(cls)}):
            raise UserError(f"unknown MoE setting {unknown[0]!r}: was this written by a newer version?")
        if missing := {"layers", "num_experts"} - set(values):
            raise UserError(f"incomplete MoE settings: {min(missing)!r} is missing")
        return cls(**values)


_CHOICES: dict[str, Any] = {
    **{"routing": Routing, "gate": Gate, "gate_input": GateInput, "init": Init},
    **{"router": RouterKind, "router_scope": RouterScope, "balance": Balance},
}
_RANGES = {
    **{"drop_share": (0.0, 1.0), "capacity": (0.01, 100.0), "router_jitter": (0.0, 0.99)},
    **{"router_temperature": (0.01, 100.0), "expert_dropout": (0.0, 0.99)},
}


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def whole_number(name: str, value: Any) -> int:
    """`value` as an int, numpy's too; anything else, `True` among it, is a `UserError` that says `name`."""
    if not _is_whole(value):
        raise UserError(f"{name} must be a whole number, got {value!r}")
    return int(value)


def whole_numbers(name: str, values: Any) -> tuple[int, ...]:
    """`values` as ints; a `UserError` that says `name` where they are none."""
    found: list[Any] = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else [None]
    if not all(map(_is_whole, found)):
        raise UserError(f"{name} must be a list of whole numbers, got {values!r}")
    return tuple(map(int, found))


def number(name: str, value: Any, lowest: float, highest: float) -> float:
    """`value` as a float within these bounds; anything else is a `UserError` that says `name`."""
    if isinstance(value, bool) or not isinstance(value, Real) or not lowest <= float(value) <= highest:
        raise UserError(f"{name} must be a number from {lowest:g} to {highest:g}, got {value!r}")
    return float(value)


def one_of(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Raise a `UserError` that lists the choices where `value` is none of them."""
    if not isinstance(value, str) or value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
