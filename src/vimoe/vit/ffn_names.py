"""FFNs whose parts have other names than timm's: transformers' are told by these names alone."""

from torch import Tensor, nn

# The names of an FFN's parts, and timm's for the same parts.
FORMS = (
    {"fc1": "fc1", "activation_fn": "act", "fc2": "fc2"},
    {"up_proj": "fc1", "act_fn": "act", "down_proj": "fc2"},
    {"gate_proj": "fc1_g", "up_proj": "fc1_x", "act_fn": "act", "down_proj": "fc2"},
)


class RenamedFFN(nn.Module):
    """An FFN under timm's names, by which the rest of the house knows its parts; `original` is the FFN itself."""

    act: nn.Module
    fc1: nn.Module
    fc1_g: nn.Module
    fc1_x: nn.Module
    drop1: nn.Module
    fc2: nn.Module

    def __init__(self, ffn: nn.Module, names: dict[str, str]) -> None:
        super().__init__()
        for theirs, ours in names.items():
            self.add_module(ours, ffn.get_submodule(theirs))
        # A tuple hides it from torch: its parts are the same modules, and would be counted twice.
        self._original = (ffn,)
        self.train(ffn.training)

    @property
    def original(self) -> nn.Module:
        """The FFN under its own names, with the parameters that this one has now."""
        return self._original[0]

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.fc1_g(x)) * self.fc1_x(x) if hasattr(self, "fc1_g") else self.act(self.fc1(x))
        return self.fc2(self.drop1(hidden) if hasattr(self, "drop1") else hidden)


def with_timm_names(ffn: nn.Module) -> nn.Module:
    """`ffn` itself where its parts have timm's names, or names that nobody here knows."""
    children = set(dict(ffn.named_children()))
    names = next((names for names in FORMS if set(names) == children), None)
    return ffn if names is None else RenamedFFN(ffn, names)


def with_own_names(ffn: nn.Module) -> nn.Module:
    """The inverse of `with_timm_names`."""
    return ffn.original if isinstance(ffn, RenamedFFN) else ffn
