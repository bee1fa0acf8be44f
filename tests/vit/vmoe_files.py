"""V-MoE's checkpoints as google-research/vmoe writes them, with made-up weights, and its arithmetic in plain NumPy."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

Tree = dict[str, Any]
SIZES = {"D": 16, "H": 24, "heads": 4, "E": 4, "classes": 5, "patch": 8, "side": 32}


def make_tree(moe: tuple[int, ...] = (1, 3), depth: int = 4, pre_logits: bool = False) -> Tree:
    """Flat, by path, random; `moe` are the blocks with experts."""
    draw = np.random.default_rng(0)
    width, hidden, heads, experts = (SIZES[key] for key in ("D", "H", "heads", "E"))
    patches = (SIZES["side"] // SIZES["patch"]) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "embedding/kernel": (SIZES["patch"], SIZES["patch"], 3, width),
        "embedding/bias": (width,),
        "cls": (1, 1, width),
        "Encoder/posembed_input/pos_embedding": (1, patches + 1, width),
        "Encoder/encoder_norm/scale": (width,),
        "Encoder/encoder_norm/bias": (width,),
        "head/kernel": (width, SIZES["classes"]),
        "head/bias": (SIZES["classes"],),
    }
    if pre_logits:
        shapes |= {"pre_logits/kernel": (width, width), "pre_logits/bias": (width,)}
    for block in range(depth):
        place = f"Encoder/encoderblock_{block}"
        for norm in ("LayerNorm_0", "LayerNorm_1"):
            shapes |= {f"{place}/{norm}/scale": (width,), f"{place}/{norm}/bias": (width,)}
        for part in ("query", "key", "value"):
            shapes[f"{place}/SelfAttention/{part}/kernel"] = (width, heads, width // heads)
            shapes[f"{place}/SelfAttention/{part}/bias"] = (heads, width // heads)
        shapes[f"{place}/SelfAttention/out/kernel"] = (heads, width // heads, width)
        shapes[f"{place}/SelfAttention/out/bias"] = (width,)
        ffn, many = (f"{place}/Moe/Mlp", (experts,)) if block in moe else (f"{place}/Mlp", ())
        shapes |= {f"{ffn}/Dense_0/kernel": (*many, width, hidden), f"{ffn}/Dense_0/bias": (*many, hidden)}
        shapes |= {f"{ffn}/Dense_1/kernel": (*many, hidden, width), f"{ffn}/Dense_1/bias": (*many, width)}
        if block in moe:
            shapes[f"{place}/Moe/Router/dense/kernel"] = (width, experts)
    return {name: draw.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def nested(flat: Tree) -> Tree:
    tree: Tree = {}
    for name, value in flat.items():
        *owners, last = name.split("/")
        place = tree
        for owner in owners:
            place = place.setdefault(owner, {})
        place[last] = value
    return tree


def pack(tree: Any) -> bytes:
    return msgpack.packb(tree, default=_extension, strict_types=True)


def _extension(value: Any) -> Any:
    """Extension types 1 (array), 6 (slices) and 8 (entry of an index)."""
    if isinstance(value, np.ndarray):
        return msgpack.ExtType(1, msgpack.packb((value.shape, value.dtype.name, value.tobytes()), use_bin_type=True))
    if isinstance(value, Slices):
        return msgpack.ExtType(6, value.packed())
    assert isinstance(value, Entry)
    shape = msgpack.packb((value.shape, "float32", False, {}), use_bin_type=True)
    parts = tuple(place.packed() for place in value.places)
    return msgpack.ExtType(8, msgpack.packb((shape, parts, tuple(value.shards)), use_bin_type=True))


class Slices(tuple[tuple[int, int], ...]):
    def packed(self) -> bytes:
        return msgpack.packb(tuple(msgpack.packb((*axis, None)) for axis in self), use_bin_type=True)


class Entry:
    def __init__(self, shape: tuple[int, ...], places: list[Slices], shards: list[int]) -> None:
        self.shape, self.places, self.shards = shape, places, shards


def write_shards(prefix: Path, tree: Tree) -> None:
    """Two shards: what has an expert axis is cut along it, and flattened chunks are cut once more, as V-MoE does."""
    index: Tree = {}
    data: list[Tree] = [{"__msgpack_array_chunk_a87ca2__": True} for _ in range(2)]
    leaves = jax_order(nested(tree))
    for number, (name, value) in enumerate(leaves.items()):
        cuts = [0, len(value) // 2, len(value)] if "/Moe/Mlp/" in name else [0, len(value)]
        places = []
        for shard, (start, stop) in enumerate(pairwise(cuts)):
            places.append(Slices(((start, stop), *((0, size) for size in value.shape[1:]))))
            flat = value[start:stop].ravel()
            chunks = [flat[:7], flat[7:]] if len(flat) > 7 else [flat]
            data[shard].setdefault(str(number), []).append([chunks, places[-1]])
        index[name] = Entry(value.shape, places, list(range(len(places))))
    head = {"version": "20220622", "shard_count": 2, "index": nested(index)}
    prefix.with_name(f"{prefix.name}.index").write_bytes(pack(head))
    for shard, pieces in enumerate(data):
        prefix.with_name(f"{prefix.name}.data-{shard:05d}-of-00002").write_bytes(pack(pieces))


def jax_order(tree: Any, path: str = "") -> Tree:
    if not isinstance(tree, dict):
        return {path: tree}
    return {k: v for name in sorted(tree) for k, v in jax_order(tree[name], f"{path}/{name}".lstrip("/")).items()}


def vmoe_logits(tree: Tree, images: np.ndarray, top_k: int = 2) -> np.ndarray:
    """V-MoE's forward in inference, without a full queue, one image and one token at a time: `[B, H, W, 3]`."""
    return np.stack([_one(tree, image.astype(np.float64), top_k) for image in images])


def _one(tree: Tree, image: np.ndarray, top_k: int) -> np.ndarray:
    p, width = SIZES["patch"], SIZES["D"]
    n = image.shape[0] // p
    patches = [image[p * i : p * (i + 1), p * j : p * (j + 1)] for i in range(n) for j in range(n)]
    kernel = tree["embedding/kernel"]
    x = np.stack([np.tensordot(patch, kernel, 3) + tree["embedding/bias"] for patch in patches])
    x = np.concatenate([tree["cls"][0], x]) + tree["Encoder/posembed_input/pos_embedding"][0]
    depth = len({name.split("/")[1] for name in tree if name.startswith("Encoder/encoderblock_")})
    for block in range(depth):
        place = f"Encoder/encoderblock_{block}"
        x = x + _attention(tree, f"{place}/SelfAttention", _norm(tree, f"{place}/LayerNorm_0", x))
        y = _norm(tree, f"{place}/LayerNorm_1", x)
        if f"{place}/Mlp/Dense_0/kernel" in tree:
            x = x + _ffn(tree, f"{place}/Mlp", y, ...)
            continue
        scores = y @ tree[f"{place}/Moe/Router/dense/kernel"]
        gates = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        for token in range(len(y)):
            for expert in np.argsort(-gates[token])[:top_k]:
                x[token] += gates[token, expert] * _ffn(tree, f"{place}/Moe/Mlp", y[token], expert)
    x = _norm(tree, "Encoder/encoder_norm", x)[0]
    assert x.shape == (width,)
    return x @ tree["head/kernel"] + tree["head/bias"] if "pre_logits/bias" not in tree else x


def _norm(tree: Tree, name: str, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * tree[f"{name}/scale"] + tree[f"{name}/bias"]


def _ffn(tree: Tree, name: str, x: np.ndarray, expert: Any) -> np.ndarray:
    hidden = x @ tree[f"{name}/Dense_0/kernel"][expert] + tree[f"{name}/Dense_0/bias"][expert]
    hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    return hidden @ tree[f"{name}/Dense_1/kernel"][expert] + tree[f"{name}/Dense_1/bias"][expert]


def _attention(tree: Tree, name: str, x: np.ndarray) -> np.ndarray:
    query, key, value = (
        np.einsum("td,dhc->htc", x, tree[f"{name}/{part}/kernel"]) + tree[f"{name}/{part}/bias"][:, None]
        for part in ("query", "key", "value")
    )
    scores = np.einsum("htc,hsc->hts", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    heads = np.einsum("hts,hsc->thc", weights, value)
    return np.einsum("thc,hcd->td", heads, tree[f"{name}/out/kernel"]) + tree[f"{name}/out/bias"]
