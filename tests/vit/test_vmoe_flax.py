"""A V-MoE of flax's own modules, with its parameters in a file of flax's own: the converted model has its logits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

jax = pytest.importorskip("jax")
linen = pytest.importorskip("flax.linen")
serialization = pytest.importorskip("flax.serialization")

from jax import numpy as jnp  # noqa: E402

from vimoe.vit.vmoe_checkpoint import load_vmoe  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


class Mlp(linen.Module):  # type: ignore[name-defined,misc]
    hidden: int

    @linen.compact
    def __call__(self, x: Any) -> Any:
        hidden = linen.gelu(linen.Dense(self.hidden)(x))
        return linen.Dense(x.shape[-1])(hidden)


class Router(linen.Module):  # type: ignore[name-defined,misc]
    experts: int

    @linen.compact
    def __call__(self, x: Any) -> Any:
        return jax.nn.softmax(linen.Dense(self.experts, use_bias=False, name="dense")(x))


class Moe(linen.Module):  # type: ignore[name-defined,misc]
    """Top-k with a capacity in groups of tokens that span images; earlier tokens go first (Riquelme et al. 2021)."""

    hidden: int
    experts: int
    top_k: int
    group: int
    capacity_factor: float

    @linen.compact
    def __call__(self, x: Any) -> Any:
        rows = x.reshape(-1, self.group, x.shape[-1])
        gates = Router(self.experts, name="Router")(rows)
        _, chosen = jax.lax.top_k(gates, self.top_k)
        one_hot = jax.nn.one_hot(chosen, self.experts, dtype=jnp.int32)  # [G, S, K, E]
        queue = one_hot.transpose(0, 2, 1, 3).reshape(len(rows), -1, self.experts)
        place = (jnp.cumsum(queue, 1) * queue).reshape(len(rows), self.top_k, self.group, -1).max(1)
        capacity = int(np.ceil(self.group * self.top_k * self.capacity_factor / self.experts))
        weights = gates * ((place > 0) & (place <= capacity))
        stacked = linen.vmap(
            Mlp,
            in_axes=None,
            axis_size=self.experts,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )(self.hidden, name="Mlp")(rows)
        return jnp.einsum("gse,egsd->gsd", weights, stacked).reshape(x.shape)


class Block(linen.Module):  # type: ignore[name-defined,misc]
    heads: int
    ffn: Any

    @linen.compact
    def __call__(self, x: Any) -> Any:
        y = linen.LayerNorm()(x)
        x = x + linen.MultiHeadDotProductAttention(num_heads=self.heads, name="SelfAttention")(y, y)
        return x + self.ffn()(linen.LayerNorm()(x))


class Positions(linen.Module):  # type: ignore[name-defined,misc]
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return x + self.param("pos_embedding", linen.initializers.normal(0.5), (1, *x.shape[1:]))


class Encoder(linen.Module):  # type: ignore[name-defined,misc]
    depth: int
    heads: int
    hidden: int
    moe: dict[str, Any]

    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = Positions(name="posembed_input")(x)
        settings = {key: value for key, value in self.moe.items() if key != "layers"}
        for block in range(self.depth):
            sparse = block in self.moe["layers"]
            ffn = (lambda: Moe(self.hidden, **settings, name="Moe")) if sparse else lambda: Mlp(self.hidden, name="Mlp")
            x = Block(self.heads, ffn, name=f"encoderblock_{block}")(x)
        return linen.LayerNorm(name="encoder_norm")(x)


class VMoE(linen.Module):  # type: ignore[name-defined,misc]
    patch: int
    width: int
    classes: int
    encoder: dict[str, Any]

    @linen.compact
    def __call__(self, images: Any) -> Any:
        kernel = (self.patch, self.patch)
        x = linen.Conv(self.width, kernel, kernel, "VALID", name="embedding")(images)
        x = x.reshape(len(x), -1, self.width)
        token = self.param("cls", linen.initializers.normal(1.0), (1, 1, self.width))
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], 1)
        x = Encoder(**self.encoder, name="Encoder")(x)[:, 0]
        return linen.Dense(self.classes, name="head")(x)


@pytest.mark.parametrize(("layers", "top_k"), [((1, 3, 5), 2), ((0, 2), 1)])
def test_the_logits_are_those_of_flax(layers: tuple[int, ...], top_k: int, tmp_path: Path) -> None:
    moe = {"layers": layers, "experts": 8, "top_k": top_k, "group": 4 * 17, "capacity_factor": 8.0}
    model = VMoE(16, 48, 10, {"depth": 6, "heads": 4, "hidden": 96, "moe": moe})
    images = np.random.default_rng(0).normal(size=(8, 64, 64, 3)).astype(np.float32)
    params = model.init(jax.random.key(0), images)["params"]
    noise = np.random.default_rng(1)  # biases and norms start at 0 and 1, which would hide a swap
    params = jax.tree.map(lambda value: value + noise.normal(0, 0.1, value.shape).astype(np.float32), params)
    (tmp_path / "checkpoint").write_bytes(serialization.to_bytes({"params": params, "step": 3}))
    converted = load_vmoe(tmp_path / "checkpoint", top_k=top_k)
    with jax.default_matmul_precision("highest"), torch.no_grad():
        expected = np.asarray(model.apply({"params": params}, images))
        got = converted(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_only_tokens_that_v_moe_drops_tell_them_apart(tmp_path: Path) -> None:
    """With its usual capacity V-MoE leaves some choices unserved; the converted model serves them all."""
    moe = {"layers": (1,), "experts": 8, "top_k": 2, "group": 2 * 17, "capacity_factor": 1.05}
    model = VMoE(16, 48, 10, {"depth": 2, "heads": 4, "hidden": 96, "moe": moe})
    images = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    params = model.init(jax.random.key(0), images)["params"]
    (tmp_path / "checkpoint").write_bytes(serialization.to_bytes(params))
    with torch.no_grad():
        got = load_vmoe(tmp_path / "checkpoint")(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    assert np.abs(got - np.asarray(model.apply({"params": params}, images))).max() > 1e-3
