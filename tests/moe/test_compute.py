"""Five ways to compute the experts: equal in output and in every gradient, in all the corners.

Expert ids and gates are given, not routed, so that every corner is really reached.
"""

import pytest
import torch

from vimoe.moe.experts import Experts

from .support import BACKENDS, KINDS, D, assert_same, make_experts, make_ffn, results

# Expert ids and the number of rows a selection: 1 as under `token` routing, more as under `image`.
CASES = {
    "one choice, one row": ([[2], [0], [1], [3], [2]], 1),
    "one choice, three rows": ([[2], [0], [1], [3], [2]], 3),
    "two choices, one row": ([[2, 0], [0, 1], [3, 2], [1, 3]], 1),
    "two choices, three rows": ([[2, 0], [0, 1], [3, 2], [1, 3]], 3),
    "three choices": ([[2, 0, 3], [0, 1, 2], [1, 3, 0]], 2),
    "all experts chosen": ([[2, 0, 3, 1], [0, 1, 2, 3], [3, 2, 1, 0]], 2),
    "experts without inputs": ([[1], [3], [1]], 2),
    "two choices, experts without inputs": ([[1, 3], [3, 1]], 1),
    "one expert takes everything": ([[2], [2], [2], [2]], 2),
    "a batch of 1": ([[3, 1]], 5),
    "nothing to compute": ([], 3),
}


def inputs(case: str, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    choices, rows = CASES[case]
    ids = torch.tensor(choices, dtype=torch.int64).view(len(choices), len(choices[0]) if choices else 2)
    generator = torch.Generator().manual_seed(1)
    x, upstream = torch.randn(2, len(choices), rows, D, generator=generator, dtype=torch.float64)
    gates = torch.rand(ids.shape, generator=generator, dtype=torch.float64)
    return x.to(dtype), ids, gates.to(dtype), upstream.to(dtype)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "inner norm"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_backends_agree_in_output_and_in_every_gradient(kind, bias, norm, case):
    experts = make_experts(kind, backend="reference", bias=bias, norm=norm).double()
    exact = inputs(case, torch.float64)
    wanted = results(experts, *exact)
    for backend in ("loop", "dense", "gathered"):
        experts.backend = backend
        assert_same(results(experts, *exact), wanted, tolerance=1e-12)
    rounded = inputs(case, torch.float32)
    single = {name: value.float() for name, value in wanted.items()}
    experts.float()
    for backend in BACKENDS:
        experts.backend = backend
        assert_same(results(experts, *rounded), single, tolerance=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[pytest.param("rows.CACHED", rows * D * 8, id=f"{rows} rows a group") for rows in (1, 3, 5)],
        *[pytest.param("compute._fill_to", lambda *_, n=n: n, id=f"filled up to {n}") for n in (2, 3, 16)],
    ],
)
def test_the_loop_is_the_same_however_experts_are_grouped_and_filled_up(monkeypatch, name, value, case):
    experts = make_experts("mlp", backend="reference", norm=True).double()
    exact = inputs(case, torch.float64)
    wanted = results(experts, *exact)
    experts.backend = "loop"
    monkeypatch.setattr(f"vimoe.moe.{name}", value)
    assert_same(results(experts, *exact), wanted, tolerance=1e-12)


@pytest.mark.parametrize(
    ("dtype", "rows_each", "selections", "multiple"),
    [
        *((torch.bfloat16, 1, 4096, 64), (torch.float16, 1, 1000, 16), (torch.bfloat16, 1, 30, 16)),
        *((torch.bfloat16, 50, 60, 50), (torch.bfloat16, 50, 512, 400), (torch.float32, 1, 4096, 1)),
    ],
)
def test_products_in_half_precision_on_a_cpu_have_few_numbers_of_rows(
    monkeypatch, dtype, rows_each, selections, multiple
):
    experts = make_experts(backend="loop").to(dtype)
    counts = []
    feed_forward = experts.feed_forward
    monkeypatch.setattr(experts, "feed_forward", lambda x, of: counts.extend(of.counts) or feed_forward(x, of))
    ids = torch.randint(4, (selections, 1), generator=torch.Generator().manual_seed(0))
    experts(torch.zeros(selections, rows_each, D, dtype=dtype), ids, torch.ones(selections, 1))
    smallest = [rows_each * count for count in ids.flatten().bincount(minlength=4).tolist()]
    assert counts == [-(-count // multiple) * multiple for count in smallest]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_sum_whose_gradient_has_stride_0_goes_backward_everywhere(kind, case):
    experts = make_experts(kind, backend="reference")
    x, ids, gates, _ = inputs(case, torch.float32)
    wanted = results(experts, x, ids, gates, None)
    for backend in ("loop", "grouped", "dense", "gathered"):
        experts.backend = backend
        assert_same(results(experts, x, ids, gates, None), wanted, tolerance=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_inference_answers_as_training_does(kind, case):
    experts = make_experts(kind, backend="reference", norm=True).double()
    x, ids, gates, _ = inputs(case, torch.float64)
    x, ids, gates = (torch.cat([value] * 3) for value in (x, ids, gates))  # beyond what is computed one by one
    for selections in (len(ids), len(ids) // 3):
        given = x[:selections], ids[:selections], gates[:selections]
        experts.backend = "reference"
        wanted = experts(*given)
        for backend in ("loop", "gathered", "auto"):
            experts.backend = backend
            with torch.inference_mode():
                torch.testing.assert_close(experts(*given), wanted.detach(), rtol=1e-12, atol=1e-12)


def test_one_image_in_inference_is_neither_sorted_nor_copied_and_meets_one_expert(monkeypatch):
    experts = make_experts(backend="auto")
    x, ids, gates, _ = inputs("a batch of 1", torch.float32)
    rows = []
    feed_forward = experts.feed_forward
    monkeypatch.setattr(experts, "feed_forward", lambda x, of: rows.append((x, of.expert)) or feed_forward(x, of))
    monkeypatch.setattr("vimoe.moe.compute.sort_by_expert", None)
    with torch.no_grad():
        experts(x, ids[:, :1], gates[:, :1])
    ((given, expert),) = rows
    assert (given.data_ptr(), expert) == (x.data_ptr(), 3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_that_are_views_are_taken(backend):
    experts = make_experts(backend=backend, norm=True)
    _, ids, gates, _ = inputs("two choices, three rows", torch.float32)
    strided = torch.randn(3, 4, 2 * D).transpose(0, 1)[..., ::2]
    assert not strided.is_contiguous()
    upstream = torch.randn(3, 4, D).transpose(0, 1)
    wanted = results(experts, strided.contiguous(), ids, gates, upstream.contiguous())
    assert_same(results(experts, strided, ids, gates, upstream), wanted, tolerance=1e-6)


@pytest.mark.parametrize("backend", ["loop", "grouped", "dense", "gathered"])
def test_an_expert_without_inputs_gets_a_zero_gradient_not_none(backend):
    experts = make_experts(backend=backend, norm=True)
    experts(*inputs("experts without inputs", torch.float32)[:3]).sum().backward()
    for name, parameter in experts.named_parameters():
        assert parameter.grad[[0, 2]].abs().max() == 0, name
        assert (parameter.grad[[1, 3]].flatten(1).abs().amax(1) > 0).all(), name


@pytest.mark.parametrize("backend", ["loop", "grouped"])
def test_a_second_derivative_is_refused_rather_than_wrong(backend):
    x, ids, gates, _ = inputs("two choices, three rows", torch.float32)
    y = make_experts(backend=backend)(x.requires_grad_(), ids, gates)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_the_loop_has_the_gradients_of_finite_differences(kind):
    torch.manual_seed(0)
    experts = Experts(make_ffn(kind, dim=2, hidden=3, norm=True), 3, backend="loop").double()
    names = [name for name, _ in experts.named_parameters()]
    values = [torch.randn_like(parameter).requires_grad_() for parameter in experts.parameters()]
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    gates = torch.rand(3, 2, dtype=torch.float64).softmax(-1).requires_grad_()
    ids = torch.tensor([[2, 0], [0, 2], [2, 0]])  # expert 1 stays empty

    def run(x, gates, *values):
        return torch.func.functional_call(experts, dict(zip(names, values, strict=True)), (x, ids, gates))

    assert torch.autograd.gradcheck(run, (x, gates, *values))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_input_gives_the_same_bits(backend):
    experts = make_experts(backend=backend, norm=True)
    case = inputs("two choices, three rows", torch.float32)
    assert_same(results(experts, *case), results(experts, *case))


@pytest.mark.parametrize("backend", ["loop", "grouped", "dense", "gathered"])
def test_frozen_experts_still_pass_the_gradient_on(backend):
    x, ids, gates, upstream = inputs("two choices, three rows", torch.float32)
    experts = make_experts(backend=backend, norm=True)
    wanted = results(experts, x, ids, gates, upstream)
    experts.requires_grad_(False)
    experts.zero_grad()
    x.requires_grad_(), gates.requires_grad_()
    experts(x, ids, gates).backward(upstream)
    assert torch.equal(x.grad, wanted["gradient of x"])
    assert torch.equal(gates.grad, wanted["gradient of gates"])
    assert all(parameter.grad is None for parameter in experts.parameters())


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backward_inside", [False, True], ids=["backward outside", "backward inside"])
@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_all_backends_agree_and_leave_fp32_gradients(kind, backward_inside, half):
    experts = make_experts(kind, backend="reference", norm=True)
    x, ids, gates, upstream = inputs("two choices, three rows", torch.float32)
    precise = results(experts, x, ids, gates, upstream)
    for backend in BACKENDS:
        experts.backend = backend
        experts.zero_grad()
        leaf, weights = x.clone().requires_grad_(), gates.clone().requires_grad_()
        with torch.autocast("cpu", dtype=half):
            y = experts(leaf, ids, weights)
            if backward_inside:
                y.backward(upstream.to(half))
        if not backward_inside:
            y.backward(upstream.to(half))
        assert y.dtype == half
        found = {"output": y.detach(), "gradient of x": leaf.grad, "gradient of gates": weights.grad}
        found |= {f"gradient of {name}": p.grad for name, p in experts.named_parameters()}
        for name, value in found.items():
            assert value.isfinite().all(), (backend, name)
            assert name == "output" or value.dtype == torch.float32, (backend, name)
            error = (value.float() - precise[name]).norm() / precise[name].norm()
            assert error < (0.02 if half == torch.bfloat16 else 0.003), (backend, name, error)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_experts_cast_wholly_to_half_precision_run(backend, half):
    experts = make_experts(backend=backend, norm=True)
    x, ids, gates, upstream = inputs("two choices, three rows", torch.float32)
    precise = results(experts, x, ids, gates, upstream)
    found = results(experts.to(half), x.to(half), ids, gates, upstream)
    for name, value in found.items():
        error = (value.float() - precise[name]).norm() / precise[name].norm()
        assert error < 0.03, (name, error)
        assert value.dtype == (torch.float32 if name == "gradient of gates" else half), name


def test_auto_is_the_loop_on_the_cpu_to_the_bit():
    case = inputs("two choices, three rows", torch.float32)
    assert_same(results(make_experts(backend="auto"), *case), results(make_experts(backend="loop"), *case))


def test_auto_gives_shapes_on_the_meta_device():
    experts = make_experts(backend="auto", norm=True).to("meta")
    x, ids, gates, _ = (value.to("meta") for value in inputs("two choices, three rows", torch.float32))
    assert experts(x, ids, gates).shape == x.shape


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_depends_on_the_seed_and_is_off_in_evaluation(backend):
    experts = make_experts(backend=backend, drop=0.5)
    case = inputs("two choices, three rows", torch.float32)

    def run(seed):
        torch.manual_seed(seed)
        return results(experts, *case)

    assert_same(run(1), run(1))
    assert not torch.equal(run(1)["output"], run(2)["output"])
    experts.eval()
    assert_same(run(1), run(2))
    plain = make_experts(backend=backend)
    plain.load_state_dict(experts.state_dict())
    assert_same(run(1), results(plain, *case))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_all_backends_agree_with_the_cpu(kind, case):
    experts = make_experts(kind, backend="reference", norm=True).double()
    exact = inputs(case, torch.float64)
    wanted = results(experts, *exact)
    cuda = [value.cuda() for value in exact]
    for backend in ("loop", "dense", "gathered"):
        experts.cuda().backend = backend
        found = {name: value.cpu() for name, value in results(experts, *cuda).items()}
        assert_same(found, wanted, tolerance=1e-10)
    experts.bfloat16().backend = "auto"
    x, ids, gates, upstream = cuda
    found = results(experts, x.bfloat16(), ids, gates.float(), upstream)
    assert_same(found, results(experts, x.bfloat16(), ids, gates.float(), upstream))
    for name, value in found.items():
        assert (value.double().cpu() - wanted[name]).norm() <= 0.03 * wanted[name].norm(), name
