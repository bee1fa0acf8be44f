"""What the tests of this room share: small FFNs, experts that differ, and a way to compare whole results."""

from __future__ import annotations

import itertools

import torch
from hypothesis import settings
from timm.layers import GluMlp, Mlp, SwiGLU, SwiGLUPacked
from torch import Tensor, nn

from vimoe.moe.config import MoEConfig
from vimoe.moe.experts import Experts
from vimoe.moe.layer import MoELayer

D, H, E = 16, 32, 4  # widths that fill whole 16-byte units in bf16, as grouped_mm wants them

KINDS = ("mlp", "swiglu_packed", "swiglu", "glu_gate_last")
BACKENDS = ("reference", "loop", "grouped", "dense", "gathered")

property_test = settings(deadline=None, max_examples=25, database=None, derandomize=True)


def randomize(module: nn.Module, std: float = 0.3) -> None:
    """Every parameter, biases and norms too, away from the values that hide a mistake."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=std)


def make_ffn(kind: str = "mlp", dim: int = D, hidden: int = H, norm: bool = False, **options: object) -> nn.Module:
    norm_layer = nn.LayerNorm if norm else None
    match kind:
        case "mlp":
            ffn = Mlp(dim, hidden, norm_layer=norm_layer, **options)
        case "swiglu_packed":
            ffn = SwiGLUPacked(dim, 2 * hidden, norm_layer=norm_layer, **options)
        case "swiglu":
            ffn = SwiGLU(dim, hidden, norm_layer=norm_layer, **options)
        case "glu_gate_last":
            ffn = GluMlp(dim, 2 * hidden, norm_layer=norm_layer, gate_last=True, **options)
    randomize(ffn)
    return ffn


def make_experts(kind: str = "mlp", num_experts: int = E, backend: str = "loop", **options: object) -> Experts:
    """Experts that all differ, which plain copies would not."""
    torch.manual_seed(0)
    experts = Experts(make_ffn(kind, **options), num_experts, backend=backend)
    randomize(experts)
    return experts


def upcycled(
    ffn: nn.Module, num_experts: int = E, num_prefix_tokens: int = 1, backend: str = "auto", **settings: object
) -> MoELayer:
    """The layer that takes an FFN's place; `settings` are those of `MoEConfig`."""
    config = MoEConfig((0,), (num_experts,), **settings)
    return MoELayer(ffn, config, num_experts=num_experts, num_prefix_tokens=num_prefix_tokens, backend=backend)


def make_layer(ffn: nn.Module | None = None, num_experts: int = E, **options: object) -> MoELayer:
    """A layer whose experts differ and whose router has an opinion."""
    torch.manual_seed(0)
    layer = upcycled(make_ffn() if ffn is None else ffn, num_experts, **options)
    randomize(layer)
    return layer


def results(experts: Experts, x: Tensor, ids: Tensor, gates: Tensor, upstream: Tensor | None) -> dict[str, Tensor]:
    """Output and every gradient, by name; `upstream` None stands for `y.sum().backward()`."""
    experts.zero_grad(set_to_none=True)
    x, gates = x.detach().clone().requires_grad_(), gates.detach().clone().requires_grad_()
    y = experts(x, ids, gates)
    found = {"output": y.detach()}
    if upstream is None:
        y.sum().backward()
    else:
        y.backward(upstream.to(y.dtype))
    named = itertools.chain([("x", x), ("gates", gates)], experts.named_parameters())
    for name, tensor in named:
        missing = tensor.grad is None
        # The oracle only touches the experts that are chosen; every other way gives every parameter a gradient.
        assert not missing or (experts.backend == "reference" and x.numel() == 0), f"{name} has no gradient"
        found[f"gradient of {name}"] = torch.zeros_like(tensor) if missing else tensor.grad.clone()
    return found


def layer_results(layer: MoELayer, x: Tensor) -> dict[str, Tensor]:
    """Output and every gradient of a whole layer, by name."""
    layer.zero_grad(set_to_none=True)
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    y.square().sum().backward()
    gradients = {f"gradient of {name}": p.grad.clone() for name, p in layer.named_parameters()}
    return {"output": y.detach(), "gradient of x": x.grad, **gradients}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 0.0) -> None:
    """Compare by name; a tolerance of 0 means the same bits."""
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(
            found[name], wanted[name], rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
