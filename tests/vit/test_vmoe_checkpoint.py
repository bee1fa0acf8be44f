"""V-MoE's checkpoints: the same logits in every file format, and one line for what is none."""

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch

import vimoe
from tests.vit.vmoe_files import make_tree, nested, pack, vmoe_logits, write_shards
from vimoe import UserError
from vimoe.cli import main
from vimoe.vit.upcycle import get_config
from vimoe.vit.vmoe_checkpoint import load_vmoe

IMAGES = np.random.default_rng(1).normal(size=(3, 32, 32, 3)).astype(np.float32)


def as_torch(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def flax_file(path: Path, tree: Any) -> Path:
    path.write_bytes(pack(tree))
    return path


def in_every_format(tree: dict[str, Any], folder: Path) -> dict[str, Path]:
    """A file of parameters, a training state with moments of the same names, shards, and an archive of NumPy's."""
    moments = nested({name: value * 0 for name, value in tree.items()})
    state = {"params": nested(tree), "opt_state": {"0": {"count": 3, "mu": moments}}, "step": np.array(7)}
    write_shards(folder / "shards", tree)
    np.savez(folder / "arrays.npz", **tree)
    return {
        "parameters": flax_file(folder / "parameters.msgpack", nested(tree)),
        "state": flax_file(folder / "checkpoint_7", state),
        "shards": folder / "shards",
        "index": folder / "shards.index",
        "npz": folder / "arrays.npz",
    }


@pytest.mark.parametrize("form", ["parameters", "state", "shards", "index", "npz"])
def test_the_logits_are_v_moes(form: str, tmp_path: Path) -> None:
    tree = make_tree()
    model = load_vmoe(in_every_format(tree, tmp_path)[form])
    with torch.no_grad():
        np.testing.assert_allclose(model(as_torch(IMAGES)).numpy(), vmoe_logits(tree, IMAGES), rtol=1e-4, atol=1e-4)


def test_which_blocks_are_moe_is_the_checkpoints(tmp_path: Path) -> None:
    config = get_config(load_vmoe(flax_file(tmp_path / "first", nested(make_tree(moe=(0, 2), depth=4)))))
    assert config is not None
    assert (config.layers, config.num_experts, config.top_k) == ((0, 2), (4, 4), 2)
    assert (config.routing, config.gate, config.shared_expert) == ("token", "softmax", False)


def test_a_capacity_serves_the_most_decided_tokens_of_an_image(tmp_path: Path) -> None:
    file = flax_file(tmp_path / "file", nested(make_tree()))
    generous, full, none = (load_vmoe(file, capacity=c) for c in (4.0, 0.25, None))
    with torch.no_grad():
        torch.testing.assert_close(generous(as_torch(IMAGES)), none(as_torch(IMAGES)))
        assert (full(as_torch(IMAGES)) - none(as_torch(IMAGES))).abs().max() > 0.01


def test_a_head_behind_a_tanh_layer_is_left_out_with_it(tmp_path: Path) -> None:
    tree = make_tree(pre_logits=True)
    model = load_vmoe(flax_file(tmp_path / "file", nested(tree)))
    assert model.num_classes == 0
    with torch.no_grad():
        np.testing.assert_allclose(model(as_torch(IMAGES)).numpy(), vmoe_logits(tree, IMAGES), rtol=1e-4, atol=1e-4)


def test_arrays_that_flax_cut_and_bfloat16_are_read(tmp_path: Path) -> None:
    tree = make_tree()
    whole = tree["head/kernel"]
    pieces = {str(n): part for n, part in enumerate(np.split(whole.ravel(), 2))}
    cut = {"__msgpack_chunked_array__": True, "shape": {"0": whole.shape[0], "1": whole.shape[1]}, "chunks": pieces}
    halves = torch.from_numpy(tree["head/bias"]).bfloat16()
    packed = msgpack.packb((halves.shape, "bfloat16", halves.view(torch.int16).numpy().tobytes()), use_bin_type=True)
    nest = nested({**tree, "head/kernel": 0, "head/bias": msgpack.ExtType(1, packed)})
    nest["head"]["kernel"] = cut
    model: Any = load_vmoe(flax_file(tmp_path / "file", nest))
    assert torch.equal(model.head.weight.T, torch.from_numpy(whole))
    assert torch.equal(model.head.bias, halves.float())


def test_the_command_writes_a_folder_that_every_verb_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = make_tree()
    file = flax_file(tmp_path / "file", nested(tree))
    assert main(["convert-vmoe", str(file), str(tmp_path / "out")]) == 0
    assert main(["info", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert printed[: len(printed) // 2] == printed[len(printed) // 2 :]
    with torch.no_grad():
        got = vimoe.load(tmp_path / "out")(as_torch(IMAGES))
    np.testing.assert_allclose(got.numpy(), vmoe_logits(tree, IMAGES), rtol=1e-4, atol=1e-4)


def without(tree: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key != name}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tree: {"a": np.zeros(3, np.float32)}, "holds no V-MoE"),
        (lambda tree: without(tree, "cls"), "it has no cls"),
        (lambda tree: without(tree, "Encoder/encoderblock_3/Moe/Router/dense/kernel"), "Mlp/Dense_0/kernel"),
        (
            lambda tree: {**tree, "Encoder/posembed_input/extra": tree["cls"]},
            "it also has Encoder/posembed_input/extra",
        ),
        (lambda tree: {**tree, "head/bias": np.zeros(9, np.float32)}, "head"),
        (lambda tree: {**tree, "Encoder/encoderblock_0/LayerNorm_0/scale": 3}, "LayerNorm_0/scale"),
        (lambda tree: {**tree, "embedding/kernel": np.zeros(3, np.float32)}, "V-MoE"),
    ],
)
def test_what_is_no_v_moe_ends_in_one_line(
    change: Any, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = flax_file(tmp_path / "file", nested(change(make_tree())))
    assert main(["convert-vmoe", str(file), str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04N.", b"\xc1", b"\xdf\xff\xff\xff\xff", b"PK\x03\x04", b"\x93" * 9999]
)
@pytest.mark.parametrize("name", ["file", "file.npz", "file.index"])
def test_what_is_no_file_of_flax_ends_in_one_line(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="file"):
        load_vmoe(tmp_path / name)


def test_a_pickled_array_is_not_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", **{"Encoder/encoder_norm/scale": np.array([print], dtype=object)}, allow_pickle=True)
    with pytest.raises(UserError, match="allow_pickle=False"):
        load_vmoe(tmp_path / "bad.npz")


@pytest.mark.parametrize("broken", ["missing", "half", "lying"])
def test_incomplete_shards_end_in_one_line(broken: str, tmp_path: Path) -> None:
    write_shards(tmp_path / "x", make_tree())
    second = tmp_path / "x.data-00001-of-00002"
    if broken == "missing":
        second.unlink()
    elif broken == "half":
        second.write_bytes(pack({"__msgpack_array_chunk_a87ca2__": True}))
    else:
        second.write_bytes(second.read_bytes()[:-40])
    with pytest.raises(UserError, match="x"):
        load_vmoe(tmp_path / "x")


def test_there_must_be_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*none, nor none\.index beside it"):
        load_vmoe(tmp_path / "none")
