import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import vimoe
from tests.export.models import SIZE, vit, write_classifier, write_segmenter
from vimoe.errors import UserError
from vimoe.export.verify import open_graph, verify
from vimoe.export.write_graph import Exported, export_model
from vimoe.tasks.model import load_model
from vimoe.vit.checkpoint import save

FAST = "token routing, k = 2"
SETTINGS = {
    "image routing, k = 2, no shared expert": {"routing": "image", "top_k": 2, "shared_expert": False},
    "image routing by the patches' mean": {"routing": "image", "gate_input": "mean"},
    "softmax gates": {"preset": "paper"},
    "token routing": {"routing": "token"},
    "token routing, k = 2": {"routing": "token", "top_k": 2},
}


@pytest.fixture(scope="module")
def routed_by_image(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("image")
    return export_model(write_classifier(folder / "m", routing="image"), folder / "m.onnx")


def test_an_onnx_file_with_image_routing_answers_as_the_model_with_every_expert(routed_by_image: Exported) -> None:
    found = verify(routed_by_image)
    assert found.agrees, found
    assert (found.other_choices, found.unreached, found.missing, found.experts) == (0, {}, [], 6)


@pytest.mark.parametrize(
    "name", [name if name == FAST else pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS]
)
def test_an_onnx_file_answers_as_the_model_with_every_expert(tmp_path: Path, name: str) -> None:
    exported = export_model(write_classifier(tmp_path / "m", **SETTINGS[name]), tmp_path / "m.onnx")
    found = verify(exported)
    assert found.agrees, found
    assert found.difference < 1e-4
    assert (found.other_choices, found.unreached, found.missing, found.experts) == (0, {}, [], 6)


def test_a_torch_export_file_answers_as_the_model_with_every_expert(tmp_path: Path) -> None:
    exported = export_model(write_classifier(tmp_path / "m", routing="image"), tmp_path / "m.pt2", "torch")
    found = verify(exported)
    assert found.agrees
    assert (found.unreached, found.missing) == ({}, [])


def test_under_image_routing_the_graph_multiplies_one_expert_only(tmp_path: Path) -> None:
    import onnx

    few, many = (write_classifier(tmp_path / str(n), routing="image", num_experts=n) for n in (2, 6))
    nodes = []
    for folder in (few, many):
        graph = onnx.load(str(export_model(folder, tmp_path / "m.onnx").path)).graph
        nodes.append(sum(node.op_type in ("MatMul", "Gemm") for node in graph.node))
    assert nodes[0] == nodes[1]


@pytest.mark.parametrize("decoder", ["linear", pytest.param("upernet", marks=pytest.mark.slow)])
def test_a_segmentation_model_exports_whole_at_sizes_that_are_no_whole_patches(tmp_path: Path, decoder: str) -> None:
    exported = export_model(write_segmenter(tmp_path / "m", decoder), tmp_path / "m.onnx")
    run, _ = open_graph(exported.path)
    images = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = load_model(tmp_path / "m")(images)  # positions resampled in every forward
    logits, experts = run(images)
    assert logits.shape == (2, 4, 40, 40)
    assert experts.shape == (2, 2, 1 + 9, 1)
    np.testing.assert_allclose(logits, want.numpy(), atol=1e-4)
    assert verify(exported).agrees


def test_half_precision_halves_the_file_and_takes_and_gives_fp32(tmp_path: Path, routed_by_image: Exported) -> None:
    half = export_model(routed_by_image.path.parent / "m", tmp_path / "half.onnx", precision="fp16")
    assert half.path.stat().st_size < 0.6 * routed_by_image.path.stat().st_size
    assert open_graph(half.path)[0](torch.randn(1, 3, SIZE, SIZE))[0].dtype == np.float32
    assert verify(half).difference < 2e-2


def test_a_dense_model_exports_as_the_plain_vit_it_is(tmp_path: Path) -> None:
    exported = export_model(write_classifier(tmp_path / "m"), tmp_path / "m.onnx")
    assert len(open_graph(exported.path)[0](torch.randn(3, 3, SIZE, SIZE))) == 1
    assert verify(exported).agrees


@pytest.mark.parametrize(
    "name",
    [
        "vit_small_patch14_reg4_dinov2",
        "deit3_small_patch16_224",
        "eva02_tiny_patch14_224",
        "vit_base_patch16_siglip_224",
        "vit_base_patch16_clip_224",
        "beitv2_base_patch16_224",
        "vit_small_patch16_dinov3",
    ],
)
def test_every_family_of_vits_traces_to_what_it_computes(tmp_path: Path, name: str) -> None:
    from vimoe.export.graph_model import GraphModel
    from vimoe.export.write_graph import trace

    size = 28 if "patch14" in name else 32
    model = vimoe.upcycle(vit(name, img_size=size, embed_dim=64, num_heads=2), last=1, num_experts=2)
    images = torch.randn(3, 3, size, size)
    with torch.no_grad():
        want = model(images)
        got = trace(GraphModel(model, (size, size)), (3, size, size)).module()(images)
    torch.testing.assert_close(got[0], want, rtol=0, atol=1e-5)


def test_attention_with_a_bias_is_taken_apart_for_onnx(tmp_path: Path) -> None:
    args = {"img_size": 32, "embed_dim": 48, "num_heads": 2, "depth": 2}
    model = vimoe.upcycle(vit("beitv2_base_patch16_224", **args), last=1, num_experts=2)
    vimoe.save(model, tmp_path / "m", model_args=args)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        want = model(images)
    run, _ = open_graph(export_model(tmp_path / "m", tmp_path / "m.onnx").path)
    np.testing.assert_allclose(run(images)[0], want.numpy(), atol=1e-5)


def test_what_onnx_cannot_hold_is_one_line_with_the_reason_and_leaves_nothing(tmp_path: Path) -> None:
    args = {"img_size": 32, "embed_dim": 48, "num_heads": 2, "depth": 1, "window_size": 1, "global_attn_indexes": (0,)}
    vimoe.save(vit("samvit_base_patch16", **args), tmp_path / "m", model_args=args)
    with pytest.raises(UserError, match=r"^torch.onnx cannot export this model: only 4D query[^\n\x1b]*$"):
        export_model(tmp_path / "m", tmp_path / "half.onnx", precision="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_the_file_says_how_to_prepare_images_and_what_the_answers_mean(routed_by_image: Exported) -> None:
    import onnx

    facts = json.loads({p.key: p.value for p in onnx.load(str(routed_by_image.path)).metadata_props}["vimoe"])
    assert facts["image"]["size"] == [SIZE, SIZE]
    assert facts["image"]["mean"] == [0.5, 0.5, 0.5]
    assert facts["class_names"] == list("abcde")
    assert facts["moe"]["num_experts"] == [3, 3]
    assert facts["moe_blocks"] == [1, 2]
    assert set(facts["versions"]) == {"vimoe", "torch", "timm"}


def test_it_runs_where_there_is_no_torch(tmp_path: Path, routed_by_image: Exported) -> None:
    exported = routed_by_image
    images = torch.randn(2, 3, SIZE, SIZE)
    np.save(tmp_path / "x.npy", images.numpy())
    code = (
        "import sys, numpy as np, onnxruntime as ort\n"
        f"s = ort.InferenceSession(r'{exported.path}')\n"
        f"y = s.run(None, {{'images': np.load(r'{tmp_path}/x.npy')}})\n"
        f"np.savez(r'{tmp_path}/y.npz', *y)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with torch.no_grad():
        want = exported.model(images)
    saved = np.load(tmp_path / "y.npz")
    np.testing.assert_allclose(saved["arr_0"], want[0].numpy(), atol=1e-4)
    assert (saved["arr_1"] == want[1].numpy()).all()


def test_images_of_another_size_are_refused_with_the_size_that_is_right(routed_by_image: Exported) -> None:
    run, _ = open_graph(routed_by_image.path)
    with pytest.raises(Exception, match=f"Got: {SIZE + 16} Expected: {SIZE}"):
        run(torch.randn(1, 3, SIZE, SIZE + 16))


def test_a_file_for_one_image_says_so_when_it_gets_two(tmp_path: Path) -> None:
    exported = export_model(write_classifier(tmp_path / "m", routing="image"), tmp_path / "m.onnx", dynamic_batch=False)
    run, any_batch = open_graph(exported.path)
    assert not any_batch
    with pytest.raises(Exception, match="Expected: 1"):
        run(torch.randn(2, 3, SIZE, SIZE))
    assert verify(exported).agrees


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path / "m")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot write"):
        export_model(folder, tmp_path / "file" / "m.onnx")
    with pytest.raises(UserError, match="is not a model folder"):
        export_model(tmp_path / "none", tmp_path / "m.onnx")
    with pytest.raises(UserError, match="format must be one of onnx, torch"):
        export_model(folder, tmp_path / "m.onnx", "tflite")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "m"]


def test_without_onnx_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"ONNX needs packages that are not installed .*pip install 'vimoe\[onnx\]'"):
        export_model(write_classifier(tmp_path / "m"), tmp_path / "m.onnx")


@pytest.mark.slow
def test_a_tampered_file_is_found_out(tmp_path: Path, routed_by_image: Exported) -> None:
    model = load_model(routed_by_image.path.parent / "m")
    with torch.no_grad():
        model.blocks[2].mlp.experts.fc2.weight[1] += torch.randn(192, 768)  # type: ignore[union-attr,operator,index]
    save(model, tmp_path / "other", model_args={"img_size": SIZE, "depth": 3})
    other = export_model(tmp_path / "other", tmp_path / "other.onnx")
    found = verify(other._replace(path=routed_by_image.path))
    assert not found.agrees
    assert found.missing == ["blocks.2 fc2.weight[1]"]
    assert found.difference > found.tolerance


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_answers_that_are_no_numbers_do_not_agree(
    number: float, routed_by_image: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = open_graph(routed_by_image.path)
    broken = lambda images: [np.full_like(run(images)[0], number), *run(images)[1:]]  # noqa: E731
    monkeypatch.setattr("vimoe.export.verify.open_graph", lambda _: (broken, True))
    found = verify(routed_by_image)
    assert (found.difference, found.agrees) == (np.inf, False)
